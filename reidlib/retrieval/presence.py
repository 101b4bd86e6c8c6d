"""How likely it is that the person is among the pictures shown, or in the gallery at all: a calibrated probability."""


class Presence:
    pass
