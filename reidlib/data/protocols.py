"""How often a data set's protocol splits its identities anew."""


def trials(name: str) -> int:
    """The number of random splits over which the protocol of `name` averages (`load(..., trial=1..trials)`)."""
    return 10 if name.removeprefix("toy/") == "pku-sketch" else 1
