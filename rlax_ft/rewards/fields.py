"""What rewards read of a record."""

from rlax_ft.errors import InputError


def field_of(record: dict, field: str):
    """A field of a record.

    Raises:
      InputError: the record has none of that name.
    """
    if field not in record:
        names = ', '.join(map(repr, record)) or 'no fields'
        raise InputError(f'a record has no field "{field}"; found {names}')
    return record[field]
