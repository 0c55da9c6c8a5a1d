"""A Google Cloud Storage server on loopback, for the tests that put things in a bucket."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "bucket"
# The emulator, and what it lacks of the protocol: the generation of an object that is read, and the
# conditions on it with which TensorStore makes two writers safe.
SERVE = """
import logging, sys
from http import HTTPStatus
from gcp_storage_emulator.handlers import objects

logging.disable(logging.CRITICAL)


def generation(request, storage, name):
    try:
        return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except Exception:
        return "0"


def reading(request, response, storage, *, plain=objects.download, **more):
    current = generation(request, storage, request.params["object_id"])
    if current != "0":
        response["x-goog-generation"] = current
    if current in request.query.get("ifGenerationNotMatch", []):
        response.status = HTTPStatus.NOT_MODIFIED
    elif current != request.query.get("ifGenerationMatch", [current])[0]:
        response.status = HTTPStatus.PRECONDITION_FAILED
    else:
        plain(request, response, storage, **more)


def writing(request, response, storage, *, plain=objects.insert, **more):
    name = request.query.get("name", [""])[0]
    current = generation(request, storage, name)
    if current != request.query.get("ifGenerationMatch", [current])[0]:
        response.status = HTTPStatus.PRECONDITION_FAILED
    else:
        plain(request, response, storage, **more)


objects.download, objects.insert = reading, writing
from gcp_storage_emulator.server import create_server

server = create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2])
server.start()
sys.stdin.read()  # until the tests end, however
server.stop()
"""


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Within, there is a server; yields the environment in which gs:// is its."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port), BUCKET],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/storage/v1/b/{BUCKET}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "no server"
                time.sleep(0.1)
        yield {
            "STORAGE_EMULATOR_HOST": url,  # for gcsfs
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google's servers about the bucket
        }
    finally:
        server.kill()
        server.wait()


@contextmanager
def in_environment(values: dict[str, str]) -> Iterator[None]:
    """Within, this process has the values in its environment too."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)
