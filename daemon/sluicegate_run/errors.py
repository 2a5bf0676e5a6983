"""The one way in which the embedded engine says that it cannot go on."""


class EmbeddedError(Exception):
    """Something a person has to know: what happened and what to do next, in one sentence, ready to be printed.

    Nothing below `sluicegate run` prints a traceback for these; a traceback means a fault in Sluicegate itself.
    """
