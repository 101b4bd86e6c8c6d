"""Search by conversation: the user describes, the system asks, candidates are marked."""

import textwrap
from html import escape
from pathlib import Path

import ipywidgets as widgets

from reidlib.retrieval.questions import NONE_OF_THESE, NOT_SURE
from reidlib.retrieval.session import QuerySession
from reidlib.widgets.panel import SearchPanel, action, html

GREETING = "Describe the person you are looking for."


class ChatSearch(SearchPanel):
    """`display(ChatSearch(session))`. What is saved goes to `folder`."""

    def __init__(self, session: QuerySession, shown: int = 12, folder: Path = Path("search")):
        session.model.require("text", "turns")
        self.bubbles, self.counter = widgets.HTML(), widgets.HTML()
        self.answers = widgets.HBox().add_class("reid-answers")
        self.entry = widgets.Text(placeholder="A woman in a red jacket…", layout={"width": "auto", "flex": "1"})
        self.entry.observe(lambda _: self._count(), "value")
        self.entry.on_msg(
            lambda _, message, __: self.send(self.entry.value) if message.get("event") == "submit" else None
        )
        send = widgets.Button(description="Send", button_style="primary", layout={"width": "70px"})
        send.on_click(lambda _: self.send(self.entry.value))
        title = widgets.HTML(
            html("reid-title", f"Search by chat · {session.model.name}, {len(session.gallery):,} pictures")
        )
        side = [title, self.bubbles, self.answers, widgets.HBox([self.entry, send]), self.counter]
        super().__init__(session, side, shown, folder)

    @action
    def send(self, text: str) -> None:
        """A turn of the user: the answer to the open question, or more of the description."""
        if self.session.question is None:
            self.session.say(text)
        else:
            self.session.answer(text)
        self.entry.value = ""
        self.session.ask()

    def refresh(self) -> None:
        super().refresh()
        self.bubbles.value = f'<div class="reid-chat"><div class="reid-bubbles">{self._talk()}</div></div>'
        question = self.session.question
        offered = [*question.answers, NONE_OF_THESE, NOT_SURE] if question else []
        self.answers.children = [self._answer(answer) for answer in offered]
        self._count()

    def _talk(self) -> str:
        said = [("them", GREETING, "")]
        for event in self.session.history:
            match event["kind"]:
                case "say" | "answer":
                    said.append(("you", event["text"], ""))
                case "ask":
                    said.append(("them", event["text"], event["why"]))
                case "like" | "dislike" if self.session.marks.get(event["row"]) == event["kind"]:
                    said.append(("mark", f"You {event['kind']}d {event['image']}", ""))
        return "".join(
            f'<div class="reid-bubble reid-{who}">{escape(text)}{f"<small>{escape(why)}</small>" if why else ""}</div>'
            for who, text, why in said
        )

    def _answer(self, answer: str) -> widgets.Button:
        button = widgets.Button(description=answer)
        button.on_click(lambda _: self.send(answer))
        return button.add_class("reid-quiet") if answer in (NONE_OF_THESE, NOT_SURE) else button

    def _count(self) -> None:
        used, limit = self.session.count_tokens(self.entry.value)
        if used <= limit:
            self.counter.value = html("reid-note", f"{used} of {limit} tokens")
        else:
            self.counter.value = html("reid-warn", f"{used} of {limit} tokens: the end will not be read")

    def _draw_side(self, axes) -> None:
        axes.set_axis_off()
        lines = []
        for event in self.session.history:
            if event["kind"] in ("say", "answer", "ask"):
                who = "System: " if event["kind"] == "ask" else "You: "
                lines += textwrap.wrap(who + event["text"], 40)
        text = "\n".join(lines[-14:] or [GREETING])
        axes.text(0, 1, text, va="top", fontsize=9.5, linespacing=1.5, parse_math=False, transform=axes.transAxes)
