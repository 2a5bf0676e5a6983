"""The grammar of each dialect."""

from ..exchange import Dialect
from .chat import Chat
from .cohere import Cohere
from .completions import Completions
from .grammar import Grammar
from .messages import Messages
from .plain import Plain
from .responses import Responses, Stored

GRAMMARS: dict[Dialect, Grammar] = {
    Dialect.CHAT: Chat(),
    Dialect.COMPLETIONS: Completions(),
    Dialect.RESPONSES: Responses(),
    Dialect.MESSAGES: Messages(),
    Dialect.COHERE: Cohere(),
    Dialect.STORED: Stored(),
    Dialect.PLAIN: Plain(),
}
