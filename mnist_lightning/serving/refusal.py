"""What a request is told when it is not answered."""


class Refused(Exception):  # noqa: N818
    """A request that is not answered: the HTTP status, and why in one line that may be shown to anybody."""

    def __init__(self, status: int, why: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.headers = status, why, headers or {}


def busy(why: str) -> Refused:
    """More than this server takes at a time; the client is told to come back."""
    return Refused(503, f"{why}: try again in a second", {"Retry-After": "1"})


FAILED = Refused(500, "the server failed: its log says how")
