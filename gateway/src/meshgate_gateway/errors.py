"""Failures of the gateway. A denial is a value, never one of these.

GatewayError
├── Refused                 authenticated, and not to be served: recorded, then a gRPC status
│   ├── InvalidRequest      malformed                              -> INVALID_ARGUMENT
│   │   └── NotStorable     the database takes no such value
│   ├── NotPermitted        not the caller's to do                 -> PERMISSION_DENIED
│   ├── Conflict            not in this state of things            -> FAILED_PRECONDITION
│   └── Missing             the caller owns nothing of that name   -> NOT_FOUND
├── Unauthenticated         no usable certificate                  -> UNAUTHENTICATED
├── Unavailable             no verdict, nothing ran                -> UNAVAILABLE
│   ├── StoreUnavailable
│   ├── PolicyUnavailable
│   ├── PolicyBusy
│   └── RuntimeUnavailable
│       └── DeliveriesSpent the runtime works; it was told of this one too often
└── ConfigurationError      before a port opens: the process exits
    └── ListingMismatch     on an activation the request is refused instead

Calling things in the wrong order is RuntimeError: a bug must not look like an attack.
"""


class GatewayError(Exception):
    """Base of the gateway's failures."""


class Refused(GatewayError):
    """A request of an authenticated caller that is not served.

    Attributes:
        reason: stable id, safe to show.
        detail: for the record; holds no argument values.
        call_id: the call it was about, or "".
        tool: the tool it was about, or "".
        recorded: True when the transaction that refused has already written the record.
        told: True when the caller may read the detail: an operator, who may read the record.
    """

    def __init__(
        self, reason: str, *, detail: str = "", call_id: str = "", tool: str = "", recorded: bool = False
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.call_id = call_id
        self.tool = tool
        self.recorded = recorded
        self.told = False


class InvalidRequest(Refused):
    """The request breaks the protocol."""


class NotStorable(InvalidRequest):
    """The database works, and takes no such value or row; asked again it says the same."""

    def __init__(self, cause: Exception) -> None:
        # Its class alone: the message quotes values.
        super().__init__("not_storable", detail=type(cause).__name__)


class NotPermitted(Refused):
    """The caller may not do this, whatever the state."""


class Conflict(Refused):
    """Not in the present state of the call or run."""


class Missing(Refused):
    """Nothing of that name belongs to the caller."""


class Unauthenticated(GatewayError):
    """The peer's certificate was not accepted.

    Attributes:
        reason: stable id of the rule that failed.
        detail: for the record.
    """

    def __init__(self, reason: str, *, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Unavailable(GatewayError):
    """No verdict was reached and nothing ran; ask again with the same key.

    Attributes:
        reason: stable id, sent as trailing metadata.
    """

    def __init__(self, reason: str, *, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class StoreUnavailable(Unavailable):
    """The store could not make something durable, or could not be read."""

    def __init__(self, *, detail: str = "") -> None:
        super().__init__("store_unavailable", detail=detail)


class PolicyUnavailable(Unavailable):
    """The engine gave no answer."""

    def __init__(self, *, detail: str = "") -> None:
        super().__init__("policy_unavailable", detail=detail)


class PolicyBusy(Unavailable):
    """The policy could not be changed between decisions; the old one is in force."""

    def __init__(self, *, detail: str = "") -> None:
        super().__init__("policy_busy", detail=detail)


class RuntimeUnavailable(Unavailable):
    """The durable runtime did not accept a call; it is reserved and has not begun."""

    def __init__(self, *, detail: str = "") -> None:
        super().__init__("runtime_unavailable", detail=detail)


class DeliveriesSpent(RuntimeUnavailable):
    """A call was delivered so often in vain that it is not delivered again; the runtime is well."""


class ConfigurationError(GatewayError):
    """The configuration, catalogue or a key cannot be used."""


class ListingMismatch(ConfigurationError):
    """The listing cannot be read, or belongs to another policy."""
