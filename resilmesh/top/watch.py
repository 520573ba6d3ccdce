"""The loops: live in a terminal, or line by line for a pipe."""

from __future__ import annotations

import json
import sys
import time

from resilmesh.telemetry.asking import NoDocument
from resilmesh.top.poll import Poll, Reader
from resilmesh.top.terminal import Terminal
from resilmesh.top.view import View, data, screen, table

#: Seconds after which a new reading, or another size of the terminal, is looked for.
_LOOK = 0.1


def live(where: str, interval: float) -> int:
    """Until q is pressed."""
    view, poll = View(), Poll(where, interval)
    shown = poll.latest
    try:
        with Terminal() as terminal:
            while not view.ended:
                if not view.paused:
                    shown = poll.latest
                width, height = terminal.size()
                terminal.draw(screen(shown[0], view, width, height, where=where, problem=poll.latest[1]))
                pressed = terminal.pressed(_LOOK)
                if pressed is None:
                    return 0
                for key in pressed:
                    view.press(key, shown[0])
    finally:
        poll.close()
    return 0


def plain(where: str, interval: float, *, as_json: bool, once: bool) -> int:
    """A table, or a JSON object, every interval, until interrupted; with ``once`` a single one, status 2 where nobody answers."""
    reader = Reader(where)
    while True:
        try:
            found = reader.read()
            lines = [json.dumps({"address": where, **data(found)})] if as_json else [*table(found, where), ""]
            if found.restarted and not as_json:
                lines.insert(0, "the program began anew")
        except NoDocument as error:
            if once:
                print(error, file=sys.stderr)
                return 2
            lines = [json.dumps({"address": where, "error": str(error)}) if as_json else f"{error}; trying again"]
        print("\n".join(lines), flush=True)
        if once:
            return 0
        time.sleep(interval)
