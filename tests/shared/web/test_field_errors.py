"""The error that a client is told, of all that pydantic finds."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from shared.web.field_errors import field_error


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]

    @model_validator(mode="after")
    def _can_do_one(self) -> "Dog":
        if not self.tricks:
            raise ValueError("tricks: must hold one")
        return self


class Owner(BaseModel):
    name: str | list[str] = ""
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = []
    favourite: Dog | Literal["none", "all"] = "none"


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"name": 5}, "name", "Input should be a valid string or a valid list"),
        ({"name": ["a", 5]}, "name.1", "Input should be a valid string"),
        ({"pets": [{"kind": "cat"}]}, "pets.0.lives", "Field required"),
        ({"pets": [{"kind": "dog", "tricks": []}]}, "pets.0.tricks", "must hold one"),
        ({"pets": ["cat"]}, "pets.0", "Input should be an object"),
        ({"favourite": {"kind": "dog", "tricks": []}}, "favourite.tricks", "must hold one"),
        ({"favourite": {"kind": "dog"}}, "favourite.tricks", "Field required"),
        ({"favourite": "some"}, "favourite", "Input should be 'none' or 'all'"),
        ([], "", "Input should be an object"),
    ],
)
def test_it_names_a_field_of_the_input_and_no_type_of_ours(
    given: Any, field: str, message: str
) -> None:
    with pytest.raises(ValidationError) as error:
        Owner.model_validate(given)
    found = field_error(error.value.errors(), given)
    assert (found.field, found.message) == (field, message)


def test_of_several_fields_the_first_is_named() -> None:
    given = {"name": 5, "pets": [{"kind": "cat"}]}
    with pytest.raises(ValidationError) as error:
        Owner.model_validate(given)
    assert field_error(error.value.errors(), given).field == "name"
