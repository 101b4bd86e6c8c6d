"""The body under the clothes: its measures, its joints in a pose, and the colours of what it wears.

Lengths are in heights of the body: x = 0 is its middle, y = 0 the crown, y = 1 the sole. A side view faces right.
"""

import math
from dataclasses import dataclass

from reidlib.toyworld.people import COLOURS, HAIR_COLOURS, SKINS, Person
from reidlib.toyworld.shapes import Point, shaded

DENIM = {"blue": (70, 100, 150), "navy": (40, 52, 88)}
HEAD_Y = 0.07
FAR = 0.8  # the limbs on the far side of a side view are darker

# Elbow and hand of the arm that carries something; x counts from the shoulder, in a side view from the middle.
HOLD_FRONT = {
    "phone": ((0.085, 0.235), (-0.035, 0.115)),
    "umbrella": ((0.03, 0.33), (-0.02, 0.23)),
    "cup": ((0.03, 0.34), (-0.03, 0.27)),
    "folder": ((0.035, 0.33), (-0.08, 0.37)),
    "parcel": ((0.035, 0.33), (-0.07, 0.4)),
}
HOLD_SIDE = {
    "phone": ((0.07, 0.3), (0.035, 0.115)),
    "umbrella": ((0.045, 0.33), (0.1, 0.24)),
    "cup": ((0.02, 0.34), (0.13, 0.28)),
    "folder": ((-0.01, 0.34), (0.1, 0.36)),
    "parcel": ((-0.01, 0.34), (0.11, 0.38)),
}


@dataclass(frozen=True)
class Pose:
    """A moment of a walk, and how faithfully the measures are kept (`wide` and `head` are 1 in a photo)."""

    view: str  # front, back or side
    phase: float
    swing: float = 1.0
    wide: float = 1.0
    head: float = 1.0


@dataclass(frozen=True)
class Limb:
    """An arm or a leg: its joints from the top, and -1 for the picture's left (the far side of a side view) or 1."""

    sign: int
    joints: tuple[Point, Point, Point]


class Body:
    """A person in a pose: what every drawn part needs to know."""

    def __init__(self, person: Person, pose: Pose):
        self.person = person
        self.side, self.back = pose.view == "side", pose.view == "back"
        self.front = not self.side and not self.back
        self._measure(person, pose)
        self._colour(person)
        stride = math.sin(2 * math.pi * pose.phase) * pose.swing
        if self.side:
            self.legs, self.arms = side_legs(stride), side_arms(stride)
        else:
            self.legs, self.arms = front_legs(self, stride, pose.swing), front_arms(self, stride, pose.swing)
        self.arms = self.arms[0], self._holding(self.arms[1])

    def _measure(self, person: Person, pose: Pose) -> None:
        man = person.sex == "man"
        self.wide = person.build * pose.wide
        self.shoulder = (0.064 if self.side else 0.112 if man else 0.1) * self.wide
        self.waist = (0.062 if self.side else 0.088 if man else 0.072) * self.wide
        self.hip = (0.066 if self.side else 0.088 if man else 0.092) * self.wide
        self.rx, self.ry = 0.05 * pose.head, 0.064 * pose.head

    def _colour(self, person: Person) -> None:
        self.skin = SKINS[person.skin]
        self.hair = HAIR_COLOURS.get(person.hair_colour, self.skin)
        self.upper = shaded(COLOURS[person.upper_colour], person.shade)
        denim = DENIM.get(person.lower_colour) if person.lower == "jeans" else None
        self.lower = shaded(denim or COLOURS[person.lower_colour], -person.shade)
        self.shoe = shaded(COLOURS[person.shoes_colour], person.shade)
        self.pattern = "plain" if person.upper_pattern == "logo" else person.upper_pattern

    def _holding(self, arm: Limb) -> Limb:
        """The right (near) arm, bent as what it carries wants it."""
        hold = (HOLD_SIDE if self.side else HOLD_FRONT).get(self.person.carried)
        if hold is None:
            return arm
        shoulder, middle = arm.joints[0], 0.0 if self.side else arm.joints[0][0]
        elbow, hand = ((middle + x, y) for x, y in hold)
        return Limb(arm.sign, (shoulder, elbow, hand))


def front_legs(body: Body, stride: float, swing: float) -> tuple[Limb, Limb]:
    """Seen from before or behind, a step shortens one leg."""
    legs = []
    for sign in (-1, 1):
        lift = max(0.0, stride * sign) * 0.05
        hip, ankle = sign * body.hip * 0.5, sign * (0.045 + 0.0135 * swing)
        legs.append(Limb(sign, ((hip, 0.5), (hip * 1.1 + sign * 0.004, 0.72 - lift * 0.5), (ankle, 0.945 - lift))))
    return legs[0], legs[1]


def side_legs(stride: float) -> tuple[Limb, Limb]:
    """Thighs swing apart, the trailing knee bends, and the lower foot stands on the ground."""
    legs = []
    for sign in (-1, 1):
        thigh = 0.44 * stride * sign
        shin = thigh - (0.08 + 0.45 * max(0.0, -thigh))
        knee = 0.23 * math.sin(thigh), 0.49 + 0.23 * math.cos(thigh)
        legs.append((knee, (knee[0] + 0.225 * math.sin(shin), knee[1] + 0.225 * math.cos(shin))))
    drop = 0.948 - max(ankle[1] for _, ankle in legs)
    far, near = (((0.0, 0.49), (k[0], k[1] + drop / 2), (a[0], a[1] + drop)) for k, a in legs)
    return Limb(-1, far), Limb(1, near)


def front_arms(body: Body, stride: float, swing: float) -> tuple[Limb, Limb]:
    arms = []
    for sign in (-1, 1):
        x, out = sign * (body.shoulder - 0.014), sign * (0.026 + 0.012 * swing)
        lift = 0.03 * max(0.0, -stride * sign)
        arms.append(Limb(sign, ((x, 0.19), (x + out, 0.335), (x + out * 1.2, 0.47 - lift))))
    return arms[0], arms[1]


def side_arms(stride: float) -> tuple[Limb, Limb]:
    """Arms swing against the legs."""
    arms = []
    for sign in (-1, 1):
        angle = -0.5 * stride * sign
        elbow = 0.155 * math.sin(angle) - 0.005, 0.19 + 0.15 * math.cos(angle)
        hand = elbow[0] + 0.135 * math.sin(angle + 0.3), elbow[1] + 0.135 * math.cos(angle + 0.3)
        arms.append(Limb(sign, ((-0.005, 0.19), elbow, hand)))
    return arms[0], arms[1]
