"""What is tried first: the words themselves, and what means the same."""

import pytest

from app.core.weak_passwords import is_easy_to_guess


@pytest.mark.parametrize(
    "password",
    [
        "password",
        "Password1",
        "P@ssw0rd!",
        "secret-2024",
        "my-service_my-service",
        "change-me",
        "CHANGE ME!",
        "123456",
        "00000000",
        "98765",
        "my-service-1",
        "My_Service+Admin",
        "LetMeIn!",
        # Short.
        "x7Kq2_z",
        "db-password",
    ],
)
def test_what_means_the_same_as_a_well_known_word_is_easy_to_guess(password: str) -> None:
    assert is_easy_to_guess(password, "my-service")


@pytest.mark.parametrize(
    "password", ["", "8273649182734", "long-and-random", "admin-4f9c2a", "passwordless"]
)
def test_a_password_of_its_own_is_not(password: str) -> None:
    assert not is_easy_to_guess(password, "my-service")
