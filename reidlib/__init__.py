"""The thin layer under the notebooks. The path that a picture and a sentence take, room by room:

    data.load         finds a data set and reads it into one table, a row a picture; data.check counts it
    data.images       decodes every picture once and keeps its pixels in rows on disk (rowstore)
    data.batches      joins pixels and token ids into batches; data.augment changes them on the device
    backbones         turn pixels and tokens into features: CLIP by any open_clip name, BERT, Swin and Llama
    methods           one file each on methods.base: a picture and a query.Query become vectors whose inner product
                      is their similarity; losses are functions of tensors that each method puts together
    training.fit      the loop, from top to bottom: batches in, rows out, checkpoints (weights) under a folder
    evaluation        encodes a gallery and its queries once, ranks them, and says who was found at which rank
    models            loads any of it again by name: a run, an open_clip model, somebody else's checkpoint (official)
    export            what leaves the workbook: open_clip's folder, ONNX with a numpy script, a model card
    retrieval         searches: a gallery, questions worth asking, and a session that holds all a witness has said
    viz, widgets      figures; panels to search by talking and drawing

A sentence is tokenised by the method that reads it (`tokenize`), embedded (`embed`), and from there on is a vector.

Around that path: `runs` keeps what a notebook comes to, `runner` and `cli` execute notebooks headless, `results` and
`comparison` put runs side by side, `book` makes pages of them, `published` holds the papers' figures, `benchmarks`
measures costs, `toyworld` draws the people that everything can be tried on. `errors`, `devices`, `paths`, `progress`
and `config` are the ground floor. Imports go from later rooms to earlier ones.
"""

__version__ = "0.1.0"
