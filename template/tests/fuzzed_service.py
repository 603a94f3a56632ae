"""The service as `test_contract_fuzz.py` serves it; this file is yours, no update touches it.

Where the service calls others, give it stand-ins here, so that they are there and see nothing of
what is sent:

    app.dependency_overrides[get_payments] = StandInPayments
"""

from fastapi import FastAPI

from app import main


def create_app() -> FastAPI:
    """Build the service as `uvicorn --factory` would."""
    return main.create_app()
