"""A file that crashes the decoder itself, in native code: it costs itself, and is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.badfiles import png, png_chunk
from tests.faults.scene import FINISHED
from tests.runs import command, environment, files_below, table, write_slices
from tests.tinybundle import make_tiny_bundle

MARK = b"crashes the decoder"
# Nobody knows a file that crashes this OpenCV (if one did, it would be refused before), so that each decode
# worker loads this: the file's bytes are known by a note in them, and the crash is a real one.
CRASHING = f"""
import ctypes
try:
    import cv2
except ImportError:
    cv2 = None
if cv2 is not None:
    decode = cv2.imdecode
    def imdecode(data, flags):
        if {MARK!r} in data.tobytes():
            ctypes.string_at(0)
        return decode(data, flags)
    cv2.imdecode = imdecode
"""


def test_a_native_crash_takes_down_one_worker_and_names_the_file(tmp_path: Path) -> None:
    write_slices(tmp_path / "data", 40)
    make_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "crashing").mkdir()
    (tmp_path / "crashing" / "sitecustomize.py").write_text(CRASHING)
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path / 'crashing'}:{env['PYTHONPATH']}"
    words = ("score", "data", "--bundle", "bundle", "--backend", "onnxruntime", "--workers", "2", "--out")
    calm = subprocess.run(command(*words, "calm"), cwd=tmp_path, env=env, capture_output=True, check=False)
    assert calm.returncode == 0, calm.stderr
    still = png(64, 64)
    crashing = still[:33] + png_chunk(b"tEXt", b"Comment\0" + MARK) + still[33:]
    bad = [f"data/p{number}/crash_{number}.png" for number in range(4)]
    for path in bad:
        (tmp_path / path).write_bytes(crashing)
    done = subprocess.run(command(*words, "out"), cwd=tmp_path, env=env, capture_output=True, check=False)
    assert done.returncode == FINISHED, done.stderr
    errors = table(tmp_path / "out", "errors.csv")
    assert list(errors["image_path"]) == bad
    assert set(errors["stage"] + " " + errors["code"]) == {"decode worker_crashed"}
    assert all("SIGSEGV" in message for message in errors["message"])
    rows = table(tmp_path / "out")
    others = rows[~rows["image_path"].isin(bad)].reset_index(drop=True)
    assert others.equals(table(tmp_path / "calm"))
    assert files_below(tmp_path / "out") == files_below(tmp_path / "calm")
