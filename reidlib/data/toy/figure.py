"""A dressed person as a list of flat parts, back to front: the one truth that photos and sketches are painted from."""

from reidlib.data.toy.body import Body, Pose
from reidlib.data.toy.clothes import arm, leg, seat, torso
from reidlib.data.toy.heads import hair_behind, hair_on_top, hat, head, neck
from reidlib.data.toy.people import Person
from reidlib.data.toy.shapes import Part
from reidlib.data.toy.things import bag, carried, handbag


def figure(person: Person, pose: Pose) -> list[Part]:
    """All parts of `person`, in the order in which they are painted."""
    b = Body(person, pose)
    left_arm, right_arm = arm(b, b.arms[0]), arm(b, b.arms[1])
    trunk = leg(b, b.legs[0]) + leg(b, b.legs[1]) + seat(b) + neck(b) + torso(b)
    face = head(b) + hair_on_top(b) + hat(b)
    if b.back:
        return carried(b) + right_arm + left_arm + handbag(b) + trunk + bag(b) + face
    if b.side:
        return hair_behind(b) + handbag(b) + left_arm + trunk + face + bag(b) + right_arm + carried(b)
    return hair_behind(b) + trunk + face + bag(b) + left_arm + right_arm + handbag(b) + carried(b)
