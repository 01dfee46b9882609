import math

import pytest

from grok_lightning.imports import import_function


def test_a_function_is_found_by_its_path():
    assert import_function("math.sqrt", "loss") is math.sqrt
    assert import_function("os.path.join", "loss")("a", "b") == "a/b"


@pytest.mark.parametrize("path", ["no_such_module.f", "math.no_such_function", "math.", ".sqrt", "."])
def test_a_path_that_leads_nowhere_is_refused(path):
    with pytest.raises(ValueError, match=f"loss: cannot import '{path}'"):
        import_function(path, "loss")


def test_what_is_no_function_is_refused():
    with pytest.raises(ValueError, match=r"loss: 'math.pi' is no function but float"):
        import_function("math.pi", "loss")
