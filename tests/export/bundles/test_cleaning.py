import pytest
from asymcir_export.bundles.tokenizer_stress import stress_texts
from asymcir_server.encode.bundle import CLEANINGS
from asymcir_server.encode.tokenizer import clean_text
from open_clip.tokenizer import get_clean_fn


@pytest.mark.parametrize("clean", CLEANINGS)
def test_the_servers_cleaning_is_open_clips(clean: str) -> None:
    theirs = get_clean_fn(clean)
    texts = list(stress_texts(2000, seed=1))
    assert [clean_text(text, clean) for text in texts] == [theirs(text) for text in texts]
