"""How the exports API refuses."""

from app.core.errors import ConflictError, NotFoundError


class ExportNotFoundError(NotFoundError):
    """No such export, or one of another owner: the answer does not tell which."""

    code = "export-not-found"
    title = "Export not found"


class ExportNotReadyError(ConflictError):
    """The file does not exist yet, or making it has failed."""

    code = "export-not-ready"
    title = "Export not ready"
