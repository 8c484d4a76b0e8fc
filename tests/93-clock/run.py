"""A wall clock that jumps, and dates that others stumble over (CASES 2, clock): nothing expires, is hurried or waits for it, and
what is written has the right time in it.

The program's wall clock is Debian's libfaketime's and can be set while it runs; its monotonic clock is the machine's."""

import datetime
import email.utils
import glob
import os
import time

from lib import RelayTest, get, main, wait_for

HOUR, DAY = 3_600, 86_400
# What a busy machine may take from one look at a clock to the next.
TOLERANCE = 30


def seconds(date):
    """Since the epoch, of a time as logs and the API have it."""
    return datetime.datetime.fromisoformat(date.replace("Z", "+00:00")).timestamp()


class ClockTest(RelayTest):
    # How long mail waits to be tried again.
    WAIT = "1s"

    def setUp(self):
        super().setUp()
        self.setting = os.path.join(self.dir, "clock")
        self.set_clock(0)
        with open(self.config, encoding="utf-8") as config:
            text = config.read()
        text = text.replace('first = "2s"\ncap = "4s"', f'first = "{self.WAIT}"\ncap = "{self.WAIT}"')
        text = text.replace("[store]\n", '[store]\nexpire_after = "1d"\n')
        with open(self.config, "w", encoding="utf-8") as config:
            config.write(text)

    def set_clock(self, ahead):
        """So many seconds ahead of the machine's, from now on."""
        self.ahead = ahead
        with open(f"{self.setting}.new", "w", encoding="ascii") as setting:
            setting.write(f"{ahead:+}\n")
        # Whole at any moment: it is read with each look at the clock.
        os.replace(f"{self.setting}.new", self.setting)

    def now(self):
        return time.time() + self.ahead

    def start(self, **more):
        [library] = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        clock = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": self.setting,
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        relay = super().start(env={**clock, **more})
        self.addCleanup(lambda: [os.unlink(left) for left in glob.glob(f"/dev/shm/*faketime*_{relay.child.pid}")])
        return relay

    def submit(self, recipient):
        """Without a Date, which the relay adds."""
        raw = f"From: {self.lab.sender}\r\nTo: {recipient}\r\nSubject: {recipient}\r\n\r\nHello.\r\n"
        return super().submit(recipient, raw.encode())

    def suspend(self):
        self.told("queue", "suspend", "--domain", "ok.test", "--reason", "a test")

    def resume(self):
        self.told("queue", "resume", "--domain", "ok.test")

    def state(self, ident):
        return self.told("message", "show", ident)["recipients"][0]["state"]

    def put_off(self, relay, ident):
        wait_for(lambda: "deferred" in self.events(relay, ident), "it is put off")

    def tries(self, relay, idents):
        """Of each, how often it was put off while this relay ran."""
        return [self.events(relay, ident).count("deferred") for ident in idents]

    def reports(self, about):
        """To the sender, on mail to this address."""
        box = self.lab.sender
        raw = [self.lab.raw(box, number) for number in range(len(self.lab.mailbox(box)))]
        return [report for report in raw if about.encode() in report]

    def is_young(self):
        """The mail that has waited longest."""
        text = get(f"127.0.0.1:{self.metrics}", "/metrics")[1].decode()
        [age] = [line.split()[1] for line in text.splitlines() if line.startswith("postrider_oldest_message_age_seconds ")]
        self.assertGreater(float(age), 0)
        self.assertLess(float(age), TOLERANCE)

    def is_now(self, at, what):
        self.assertLess(abs(at - self.now()), TOLERANCE, what)

    def are_now(self, raw, *fields):
        """Each field's time is now, whatever offset it is written with."""
        lines = raw.decode().replace("\r\n\t", " ").split("\r\n")
        for field in fields:
            date = next(line for line in lines if line.startswith(f"{field}: "))
            date = date.rsplit("; ", 1)[-1].removeprefix(f"{field}: ")
            self.is_now(email.utils.parsedate_to_datetime(date).timestamp(), f"{field}: {date}")


class Running(ClockTest):
    def test_a_clock_set_days_ahead_ends_and_hurries_nothing(self):
        relay = self.start()
        self.suspend()
        idents = [self.submit(f"ahead{number}@ok.test") for number in range(5)]
        full = self.submit("ahead@full.test")
        self.put_off(relay, full)
        begun, before = time.monotonic(), self.tries(relay, [full])[0]
        self.set_clock(3 * DAY)
        later = self.submit("ahead@greylist.test")
        # Put off once, and then due: deadlines have been looked at meanwhile.
        self.lab.arrived("ahead@greylist.test")
        self.assertEqual({self.state(ident) for ident in idents}, {"queued"})
        self.is_young()
        for event in self.told("message", "show", later)["events"]:
            self.assertLess(abs(seconds(event["at"]) - time.time()), TOLERANCE, event)
        most = 1 + (time.monotonic() - begun) / 0.9
        self.assertLessEqual(self.tries(relay, [full])[0] - before, most)
        self.resume()
        for number in range(5):
            self.lab.arrived(f"ahead{number}@ok.test")
        self.assertEqual(self.reports("@ok.test") + self.reports("ahead@full.test"), [])
        self.assertLess(max(idents), later)
        self.assertEqual(relay.stop(), 0)

    def test_a_clock_set_back_holds_up_nothing(self):
        relay = self.start()
        idents = [self.submit(f"back{number}@greylist.test") for number in range(5)]
        for ident in idents:
            self.put_off(relay, ident)
        self.set_clock(-HOUR)
        idents += [self.submit(f"back{number}@greylist.test") for number in range(5, 10)]
        for number in range(10):
            self.lab.arrived(f"back{number}@greylist.test")
        self.assertEqual(idents, sorted(set(idents)), "in the order they came in")
        self.assertEqual(relay.stop(), 0)


class Restarted(ClockTest):
    """What waits is put off for an hour, so that whatever is tried is tried because of the clock."""

    WAIT = "1h"

    def restart(self, name, ahead):
        """A relay with mail that it has put off, mail that is suspended, and a clock that was set while nothing ran."""
        relay = self.start()
        self.suspend()
        full = [self.submit(f"{name}{number}@full.test") for number in range(5)]
        put_off = [self.submit(f"{name}@greylist.test")]
        for number in range(5):
            self.submit(f"{name}{number}@ok.test")
        for ident in full + put_off:
            self.put_off(relay, ident)
        self.assertEqual(self.tries(relay, full + put_off), [1] * 6)
        self.assertEqual(relay.stop(), 0)
        self.set_clock(ahead)
        relay = self.start()
        self.resume()
        for number in range(5):
            self.lab.arrived(f"{name}{number}@ok.test")
        # Tried at once, since its time is over or can't be right.
        self.lab.arrived(f"{name}@greylist.test")
        for ident in full:
            self.put_off(relay, ident)
        self.submit(f"{name}-last@second.test")
        self.lab.arrived(f"{name}-last@second.test")
        self.assertEqual(self.tries(relay, full), [1] * 5, "once, and then in an hour")
        self.assertEqual(self.reports("@ok.test") + self.reports(f"{name}@greylist.test"), [])
        self.assertEqual(relay.stop(), 0)

    def test_a_start_days_later_tries_all_once_and_returns_nothing_untried(self):
        self.restart("later", 3 * DAY)

    def test_a_start_days_earlier_does_not_wait_for_them(self):
        self.restart("earlier", -3 * DAY)


class Dates(ClockTest):
    WAIT = "200ms"

    def all_is_right(self, relay, name):
        """What comes in, goes out, comes back and is told of has the time of the relay's clock."""
        sent = self.submit(f"{name}@second.test")
        self.submit(f"{name}@greylist.test")
        lost = self.submit("nobody@reject.test")
        [arrived] = self.lab.arrived(f"{name}@second.test")
        self.are_now(arrived, "Received", "Date")
        [report] = wait_for(lambda: self.reports(lost), "a report")
        self.are_now(report, "Date", "Arrival-Date", "Last-Attempt-Date")
        self.lab.arrived(f"{name}@greylist.test")
        events = wait_for(lambda: self.ended(sent), "it has ended")
        for event in events:
            self.is_now(seconds(event["at"]), event)
        for line in relay.logged().splitlines():
            self.is_now(seconds(line.split('"timestamp":"', 1)[1].split('"', 1)[0]), line)

    def ended(self, ident):
        events = self.told("message", "show", ident)["events"]
        return events if events[-1]["kind"] == "delivered" else None

    def pass_by(self, moment, name, **more):
        """A relay that is started a little before and runs on, and one that is started afterwards."""
        # Earlier where the machine is so busy that the moment has come before anything was done.
        for early in (3, 30):
            self.set_clock(moment - early - time.time())
            relay = self.start(**more)
            self.suspend()
            waits = self.submit(f"{name}-waits@ok.test")
            if self.now() < moment:
                break
            self.assertEqual(relay.stop(), 0)
        self.assertLess(self.now(), moment)
        self.all_is_right(relay, f"{name}-before")
        wait_for(lambda: self.now() > moment + 1, "the moment is over")
        self.all_is_right(relay, f"{name}-after")
        self.assertEqual(self.state(waits), "queued")
        self.is_young()
        self.assertEqual(relay.stop(), 0)
        relay = self.start(**more)
        self.resume()
        self.lab.arrived(f"{name}-waits@ok.test")
        self.all_is_right(relay, f"{name}-again")
        self.assertEqual(relay.stop(), 0)

    def test_the_seconds_no_longer_fit_into_31_bits(self):
        self.pass_by(2**31, "y2038")

    def test_daylight_saving_ends(self):
        end = datetime.datetime(2027, 10, 31, 1, tzinfo=datetime.timezone.utc)
        self.pass_by(end.timestamp(), "summer", TZ="Europe/Berlin")


if __name__ == "__main__":
    main()
