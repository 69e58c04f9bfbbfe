"""A Cloud Storage on 127.0.0.1, in memory: of its JSON API what gcsfs, google-cloud-storage and tensorstore ask for.

Objects appear whole and have generations; `ifGenerationMatch` holds. Buckets are whatever is named, but `absent`.
"""

import itertools
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Store:
    """Objects by (bucket, name): (bytes, generation, when); `readonly` buckets are refused, `requests` counted."""

    def __init__(self):
        self.objects, self.uploads, self.readonly, self.lock = {}, {}, set(), threading.Lock()
        self.generations, self.requests = itertools.count(1), 0

    def put(self, bucket, name, data, match):
        """The object's description; None where a precondition does not hold."""
        with self.lock:
            if match is not None and int(match) != self.objects.get((bucket, name), (b"", 0, 0))[1]:
                return None
            self.objects[bucket, name] = data, next(self.generations), time.time()
            return self.about(bucket, name)

    def about(self, bucket, name):
        """An object as the API describes it."""
        data, generation, when = self.objects[bucket, name]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when)) + f".{int(when % 1 * 1000):03}Z"
        return {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(data)), "updated": stamp,
                "timeCreated": stamp, "generation": str(generation), "metageneration": "1"}  # fmt: skip

    def list(self, bucket, prefix, delimiter):
        """(objects, prefixes)."""
        with self.lock:
            names = sorted(name for b, name in self.objects if b == bucket and name.startswith(prefix))
            cut = {name: name.find(delimiter, len(prefix)) if delimiter else -1 for name in names}
            inside = dict.fromkeys(name[: at + 1] for name, at in cut.items() if at >= 0)
            return [self.about(bucket, name) for name in names if cut[name] < 0], list(inside)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: Store

    def answer(self, code, body=b"", **headers):
        """Sends one."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, code, message):
        """Sends an error."""
        self.answer(code, {"error": {"code": code, "message": message}}, Content_Type="application/json")

    def handle_any(self):
        """Takes one request apart and answers it."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.store.requests += 1
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(/o)?(?:/(.+))?", url.path)
        if not found or found[2] == "absent":
            return self.refuse(404, f"no {url.path}")
        kind, bucket, objects, name = found[1], found[2], found[3], unquote(found[4] or "")
        if not objects:
            return self.answer(200, {"kind": "storage#bucket", "name": bucket})
        if self.command in ("POST", "PUT", "DELETE") and bucket in self.store.readonly:
            return self.refuse(403, "no permission to write")
        if kind == "/upload":
            return self.upload(bucket, query, sent)
        if not name:
            items, prefixes = self.store.list(bucket, query.get("prefix", ""), query.get("delimiter", ""))
            return self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": prefixes})
        if (bucket, name) not in self.store.objects:
            return self.refuse(404, f"No such object: {bucket}/{name}")
        if self.command == "DELETE":
            self.store.objects.pop((bucket, name), None)
            return self.answer(204)
        about = self.store.about(bucket, name)
        if query.get("alt") != "media":
            return self.answer(200, about, Content_Type="application/json")
        if query.get("ifGenerationNotMatch") == about["generation"]:
            return self.answer(304)
        data, tags = self.store.objects[bucket, name][0], {"x_goog_generation": about["generation"]}
        if not (asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))):
            return self.answer(200, data, **tags)
        first = int(asked[1]) if asked[1] else max(len(data) - int(asked[2]), 0)
        last = min(int(asked[2]) if asked[1] and asked[2] else len(data) - 1, len(data) - 1)
        if first >= len(data):
            return self.refuse(416, "Requested range not satisfiable")
        tags["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
        return self.answer(206, data[first : last + 1], **tags)

    def upload(self, bucket, query, sent):
        """A whole object at once, or a part of a resumable one."""
        name, match, final = query.get("name"), query.get("ifGenerationMatch"), True
        if query["uploadType"] == "multipart":
            mark = self.headers["Content-Type"].split("boundary=")[1].strip('"').encode()
            about, data = (part.lstrip(b"\r\n").split(b"\n\n", 1)[1] for part in sent.split(b"--" + mark)[1:3])
            name, sent = json.loads(about)["name"], data[:-1]
        elif query["uploadType"] == "resumable" and "upload_id" not in query:
            key = str(next(self.store.generations))
            self.store.uploads[key] = b""
            here = f"http://{self.headers['Host']}{self.path}"
            return self.answer(200, Location=f"{here}&upload_id={key}")
        elif query["uploadType"] == "resumable":
            sent = self.store.uploads[query["upload_id"]] = self.store.uploads[query["upload_id"]] + sent
            final = not self.headers["Content-Range"].endswith("/*")
        if not final:
            return self.answer(308, Range=f"bytes=0-{len(sent) - 1}")
        about = self.store.put(bucket, name, sent, match)
        return self.refuse(412, "conditionNotMet") if about is None else self.answer(200, about)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

    def log_message(self, *_):
        """Nothing."""


def serve():
    """(store, address, stop) of a server in a thread."""
    store = Store()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"store": store}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients hang up on answers that they need no more
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    return store, f"http://127.0.0.1:{server.server_port}", stop
