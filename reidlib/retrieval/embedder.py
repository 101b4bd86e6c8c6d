"""What the session asks of a method, in terms of queries and the one encoder."""

from PIL import Image
from torch import Tensor

from reidlib.data.dialogues import Dialogue
from reidlib.evaluation import Encoder
from reidlib.methods.base import Method
from reidlib.query import OPENING, Query

__all__ = ["OPENING", "Dialogue", "Embedder"]


class Embedder:
    """A method in evaluation mode; every call returns float32 embeddings (B, D) on the CPU."""

    def __init__(self, model: Method):
        self.model, self._encoder = model.eval(), Encoder(model)

    def takes(self, part: str) -> bool:
        return part in self.model.reads

    @property
    def composes(self) -> bool:
        """Whether the method has a way of its own to make one query of a sketch and a text."""
        return type(self.model).compose is not Method.compose

    def require(self, *parts: str) -> None:
        self.model.require(*parts)

    def images(self, pictures: list[Image.Image]) -> Tensor:
        return self._encoder.images(pictures).cpu()

    def sketch(self, picture: Image.Image) -> Tensor:
        return self._encoder.queries([Query(sketch=picture)]).cpu()

    def texts(self, texts: list[str]) -> Tensor:
        """Each text as a query of its own."""
        return self._encoder.queries([Query(text=text) for text in texts]).cpu()

    def dialogues(self, dialogues: list[Dialogue]) -> Tensor:
        return self._encoder.queries([Query(turns=turns) for turns in dialogues]).cpu()

    def compose(self, picture: Image.Image, text: str) -> Tensor:
        return self._encoder.queries([Query(sketch=picture, text=text)]).cpu()
