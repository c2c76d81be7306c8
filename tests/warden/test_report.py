"""What the warden says of its host."""

from stockade.warden.image import Image
from stockade.warden.report import _own_inodes

IMAGE = Image(name="host", lower="/lower", binds=(("/image/usr", "usr"), ("/image/opt", "opt")), whole=("usr", "opt"))


def test_what_is_shown_by_an_overlay_is_a_sandbox_s_own() -> None:
    assert _own_inodes(IMAGE)["enforced"]


def test_what_has_mounts_below_it_is_said_to_be_shared_with_the_host() -> None:
    shared = Image(name="host", lower="/lower", binds=IMAGE.binds, whole=("usr",))
    feature = _own_inodes(shared)
    assert not feature["enforced"]
    assert not feature["required"]
    assert "/opt" in feature["mechanism"]
    assert "/usr" not in feature["mechanism"]
    assert feature["remedy"]
