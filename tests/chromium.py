"""A headless Chromium, driven over its DevTools protocol by a pair of pipes; shared by the tests of pages."""

import json
import os
import shutil
import subprocess
import sys
import time

NAMES = "chromium-headless-shell chromium chromium-browser google-chrome chrome headless_shell".split()
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# It reads from descriptor 3 and writes to 4; first out of each other's way
EXEC = """import os, sys
ends = [os.dup2(int(word), 90 + k) for k, word in enumerate(sys.argv[1:3])]
for k, end in enumerate(ends):
    os.dup2(end, 3 + k)
os.execv(sys.argv[3], sys.argv[3:])"""
PATIENCE = 120  # seconds; the machine may be busy


class Tab:
    """One page, shown: `with Tab(url, folder) as tab`; `events` are what it told meanwhile."""

    def __init__(self, url, folder):
        mine, its = os.pipe(), os.pipe()
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        ends = mine[0], its[1]
        start = [sys.executable, "-S", "-c", EXEC, *map(str, ends), CHROMIUM, *words]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(start, pass_fds=ends, **quiet)
        os.close(mine[0])
        os.close(its[1])
        self.to, self.back = os.fdopen(mine[1], "wb"), os.fdopen(its[0], "rb")
        self.count, self.rest, self.events, self.session = 0, b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        self.to.close()
        self.back.close()

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        self.to.write(json.dumps(message).encode() + b"\0")
        self.to.flush()
        while True:
            answer = self.read()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def read(self):
        while b"\0" not in self.rest:
            chunk = os.read(self.back.fileno(), 1 << 16)
            assert chunk, "Chromium has ended"
            self.rest += chunk
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def run(self, script):
        """What a JavaScript expression gives."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script):
        """Until the expression is true; returns what it gives."""
        end = time.monotonic() + PATIENCE
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never: {script}"
            time.sleep(0.1)
        return found

    def choose(self, selector, path):
        """A file in an <input type="file">."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def type(self, selector, text):
        """Text in place of what is in a field, and the return key."""
        self.run(f"(e => {{ e.focus(); e.select() }})(document.querySelector({json.dumps(selector)}))")
        self.call("Input.insertText", text=text)
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **key)

    def of(self, method):
        """The events of one kind so far."""
        return [event["params"] for event in self.events if event.get("method") == method]
