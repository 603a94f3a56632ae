"""How the orders API refuses: each error carries its HTTP status."""

from app.core.errors import ConflictError, NotFoundError


class OrderNotFoundError(NotFoundError):
    """No such order, or one of another owner: the answer does not tell which."""

    code = "order-not-found"
    title = "Order not found"


class OrderNotCancellableError(ConflictError):
    """The order is confirmed or cancelled already, or became so while this request ran."""

    code = "order-not-cancellable"
    title = "Order cannot be cancelled"
