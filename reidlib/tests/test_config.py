"""Settings: presets, and overrides refused with the nearest name or the expected type."""

import pytest

from reidlib.config import Config
from reidlib.errors import ConfigError, DataError
from reidlib.methods.clip import ClipConfig
from reidlib.paths import inside


def test_override():
    config = ClipConfig.preset("toy", epochs=3, lr=1, views=["sketch"])
    assert (config.epochs, config.lr, config.views) == (3, 1.0, ("sketch",))
    assert isinstance(config.lr, float)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, "the nearest is 'epochs'"),
        ({"epochs": "three"}, "ClipConfig.epochs should be int and got 'three'"),
        ({"epochs": True}, "epochs should be int"),
        ({"image_size": (1, 2, 3)}, "image_size"),
        ({"views": "text"}, "views"),
        ({"precision": 16}, "precision should be 'auto', 'fp32', 'bf16' or 'fp16' and got 16"),
        ({"views": ["text", "word"]}, "views should be 'text' or 'sketch' and got 'word'"),
        ({"batch_size": 0}, "batch_size should be at least 1"),
    ],
)
def test_wrong_override(overrides, message):
    with pytest.raises(ConfigError, match=message):
        ClipConfig.preset("toy", **overrides)


def test_a_field_of_a_new_config_is_checked_too():
    with pytest.raises(ConfigError, match="ClipConfig.loss should be 'sdm' or 'itc' and got 'ict'"):
        ClipConfig(loss="ict")


def test_unknown_preset():
    with pytest.raises(ConfigError, match="choose one of toy, paper"):
        ClipConfig.preset("tony")


def test_settings_survive_json():
    import json

    config = ClipConfig.paper()
    assert ClipConfig().replace(**json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\..\\..\\x", "C:\\x", ""])
def test_paths_do_not_leave_their_root(tmp_path, path):
    with pytest.raises(DataError, match="leaves its folder"):
        inside(tmp_path, path)


def test_paths_inside(tmp_path):
    assert inside(tmp_path, "imgs/a..b/1:2.jpg") == tmp_path / "imgs" / "a..b" / "1:2.jpg"


def test_base_config_has_no_presets():
    with pytest.raises(ConfigError):
        Config.preset("toy")
