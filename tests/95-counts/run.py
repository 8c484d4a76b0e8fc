"""System calls for each message, of the program as it ships: counted by strace in a scripted session, and held against marks.

One client hands over one message after another, each when the one before has been delivered and settled. The relay has one
core, so one worker. A message's calls are those from its reply to the next one's; the median of all messages counts, since
now and then a timer ends or a file is rotated. `marks.json` says what each may be and how to measure anew.
"""

import collections
import json
import os
import re
import signal
import statistics
import unittest

import lib

MARKS = os.path.join(os.path.dirname(__file__), "marks.json")
WARM_UP, COUNTED = 20, 60
BODY = b"A line of a message as it is sent many times a day, 72 octets of it.  \r\n" * 142

# "1234  sendto(9, ..." and "1234  <... epoll_wait resumed>..."; of a call in two lines the first counts.
CALL = re.compile(r"^\d+ +([a-z]\w*)\(")


def calls(trace):
    """For each counted message, how often each call was made."""
    messages, now = [], collections.Counter()
    with open(trace, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if found := CALL.match(line):
                now[found[1]] += 1
            if '"250 2.0.0 queued as ' in line:
                messages.append(now)
                now = collections.Counter()
    return messages[WARM_UP:]


def risen(found, marks):
    """What is made more often than its mark and its tolerance allow, in words."""
    allowed = {name: marks["calls"].get(name, 0) + marks["tolerance"].get(name, 0) for name in found}
    return [
        f"{name}: {count} for each message, at most {allowed[name]} allowed"
        for name, count in found.items()
        if count > allowed[name]
    ]


class Marks(unittest.TestCase):
    def test_only_what_wakes_and_waits_may_be_more(self):
        with open(MARKS, encoding="utf-8") as file:
            marks = json.load(file)
        calls = marks["calls"]
        self.assertEqual(risen(calls, marks), [])
        for name in ("epoll_wait", "futex", "write"):
            self.assertEqual(risen({name: calls[name] + 1}, marks), [], name)
            self.assertEqual(len(risen({name: calls[name] + 2}, marks)), 1, name)
        for name in set(calls) - set(marks["tolerance"]) | {"fsync", "openat", "pwrite64"}:
            count = calls.get(name, 0) + 1
            self.assertEqual(risen({name: count}, marks), [f"{name}: {count} for each message, at most {count - 1} allowed"])


class SystemCalls(lib.RelayTest):
    def test_a_message_makes_no_more_calls_than_its_marks(self):
        trace = os.path.join(self.dir, "trace")
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            relay = self.start(within=["strace", "-f", "-qq", "-s", "24", "-o", trace])
        finally:
            os.sched_setaffinity(0, cores)
        with open(f"/proc/{relay.child.pid}/task/{relay.child.pid}/children", encoding="ascii") as children:
            traced = int(children.read().split()[0])
        try:
            self.send(relay)
        finally:
            os.kill(traced, signal.SIGTERM)
        self.assertEqual(relay.child.wait(lib.PATIENCE), 0, relay.logged())
        messages = calls(trace)
        self.assertGreater(len(messages), COUNTED - 5, "messages in the trace")
        names = sorted({name for message in messages for name in message})
        median = {name: statistics.median_high(message[name] for message in messages) for name in names}
        found = {name: count for name, count in median.items() if count}
        found["all"] = statistics.median_high(message.total() for message in messages)
        print(json.dumps(found, indent=2))
        with open(MARKS, encoding="utf-8") as file:
            marks = json.load(file)
        # A sync more for some of them would not move the median.
        syncs = sum(message["fdatasync"] + message["fsync"] for message in messages)
        self.assertLessEqual(syncs, marks["calls"]["fdatasync"] * len(messages) + 2, "syncs of all messages together")
        self.assertEqual(risen(found, marks), [], f"a message makes more system calls than it did ({MARKS} says what to do)")

    def send(self, relay):
        """Each message when the one before is settled."""
        recipient = "user@ok.test"
        text = lib.message(self.lab.sender, recipient, body=BODY)
        commands = f"MAIL FROM:<{self.lab.sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode()
        with lib.Raw(f"127.0.0.1:{self.port}") as client, open(relay.log, encoding="utf-8", errors="replace") as log:
            lib.expect(client.reply(), 220)
            lib.expect(client.ask(b"EHLO app.sender.test"), 250)
            delivered = 0
            for number in range(WARM_UP + COUNTED + 1):
                client.send(commands)
                for code in (250, 250, 354):
                    self.assertEqual(client.reply()[0], code)
                client.send(text + b".\r\n")
                self.assertEqual(client.reply()[0], 250)

                def settled():
                    nonlocal delivered
                    delivered += sum('"message":"delivered"' in line for line in log)
                    return delivered > number

                lib.wait_for(settled, f"message {number} is delivered")


if __name__ == "__main__":
    lib.main()
