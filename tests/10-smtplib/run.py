"""Python's smtplib against every kind of listener: what an application sees."""

import re
import smtplib
import socket
import ssl
import unittest
import warnings

from lib import LabTest, expect, host_port, main, message, queue_id


class Submission(LabTest):
    def test_starttls_then_plain(self):
        self.deliver("submission", "plain@ok.test", "PLAIN")

    def test_starttls_then_login(self):
        self.deliver("submission", "login@ok.test", "LOGIN")

    def test_implicit_tls(self):
        self.deliver("submissions", "implicit@ok.test", "PLAIN")

    def handshake(self, prepare):
        """What becomes of a handshake on the TLS listener: the protocol that both chose, or the exception."""
        context = self.lab.tls()
        prepare(context)
        with socket.create_connection(host_port(self.lab.at["submissions"]), timeout=30) as plain:
            try:
                with context.wrap_socket(plain, server_hostname="localhost") as secure:
                    return secure.selected_alpn_protocol()
            except ssl.SSLError as error:
                return error

    def test_old_tls_is_refused(self):
        """CASES row 41, RFC 8314 section 4.1."""

        def old(context):
            # What Debian's OpenSSL would not offer by itself.
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = ssl.TLSVersion.TLSv1_1

        self.assertIsInstance(self.handshake(old), ssl.SSLError)
        self.assertIsNone(self.handshake(lambda context: None))

    def test_no_web_protocol_is_agreed_on(self):
        """CASES row 41 (ALPACA): a browser made to speak to us learns at the handshake that this is not its server."""
        found = self.handshake(lambda context: context.set_alpn_protocols(["h2", "http/1.1"]))
        self.assertTrue(found is None or isinstance(found, ssl.SSLError), found)

    def test_a_list_with_many_useless_addresses_reaches_the_others(self):
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            expect(client.mail(self.lab.sender), 250)
            for number in range(60):
                expect(client.docmd("RCPT", f"TO:<no-domain-{number}>"), 501)
            expect(client.rcpt("useful@ok.test"), 250)
            queue_id(client.data(message(self.lab.sender, "useful@ok.test")))
        self.lab.arrived("useful@ok.test")

    def test_trusted_network(self):
        self.deliver("trusted", "trusted@ok.test", None)

    def deliver(self, door, recipient, mechanism):
        raw = message(self.lab.sender, recipient)
        with self.lab.client(door, login=False) as client:
            if mechanism:
                client.ehlo()
                client.user, client.password = self.lab.at["username"], self.lab.at["password"]
                authenticate = {"PLAIN": client.auth_plain, "LOGIN": client.auth_login}[mechanism]
                # LOGIN without an initial response: the server asks for both parts.
                expect(client.auth(mechanism, authenticate, initial_response_ok=mechanism == "PLAIN"), 235, "2.7.0")
            queued = queue_id(self.lab.transaction(client, [recipient], raw))
        (arrived,) = self.lab.arrived(recipient)
        self.assertTrue(arrived.endswith(raw), "the message has changed")
        received = re.search(rb"(?m)^Received: (?:[^\r]|\r\n[ \t])*\r\n", arrived).group()
        self.assertIn(queued.encode(), received, "Received names the queue id")
        protocol = {"submission": b"ESMTPSA", "submissions": b"ESMTPSA", "trusted": b"ESMTP"}[door]
        self.assertRegex(received, rb"with " + protocol + rb"\b", "RFC 3848")
        self.assertIn(recipient.encode(), received, "one recipient: Received says for whom")

    def test_many_recipients_of_several_domains(self):
        names = [f"many{n}@{domain}" for n in range(15) for domain in ("ok.test", "second.test")]
        raw = message(self.lab.sender, "undisclosed:;")
        self.lab.submit(names, raw)
        for name in names:
            (arrived,) = self.lab.arrived(name)
            self.assertTrue(arrived.endswith(raw))
            self.assertNotIn(name.encode(), arrived, "more than one recipient: nobody is named")

    def test_several_messages_in_one_session(self):
        with self.lab.client() as client:
            ids = {
                queue_id(self.lab.transaction(client, ["several@ok.test"], message(self.lab.sender, "several@ok.test")))
                for _ in range(5)
            }
        self.assertEqual(len(ids), 5)
        self.lab.arrived("several@ok.test", 5)

    def test_greylisted_mail_arrives_later(self):
        self.lab.submit(["later@greylist.test"], message(self.lab.sender, "later@greylist.test"))
        self.lab.arrived("later@greylist.test")

    def test_date_and_message_id_are_added_where_absent(self):
        raw = f"From: {self.lab.sender}\r\nTo: bare@ok.test\r\n\r\nHello.\r\n".encode()
        self.lab.submit(["bare@ok.test"], raw)
        (arrived,) = self.lab.arrived("bare@ok.test")
        self.assertTrue(arrived.endswith(raw))
        self.assertEqual(len(re.findall(rb"(?mi)^date:", arrived)), 1)
        self.assertEqual(len(re.findall(rb"(?mi)^message-id:", arrived)), 1)

    def test_date_and_message_id_are_left_alone(self):
        raw = message(self.lab.sender, "full@ok.test")
        self.lab.submit(["full@ok.test"], raw)
        (arrived,) = self.lab.arrived("full@ok.test")
        self.assertEqual(len(re.findall(rb"(?mi)^date:", arrived)), 1)
        self.assertEqual(len(re.findall(rb"(?mi)^message-id:", arrived)), 1)

    # --- what is offered ---

    def test_what_is_offered(self):
        with self.lab.client(login=False) as client:
            client.ehlo()
            offered = {name: client.esmtp_features[name] for name in client.esmtp_features}
        for name in ("pipelining", "size", "8bitmime", "enhancedstatuscodes", "auth"):
            self.assertIn(name, offered)
        self.assertNotIn("starttls", offered, "not offered again inside TLS (RFC 3207 §4.2)")
        self.assertTrue({"PLAIN", "LOGIN"} <= set(offered["auth"].split()))

    def test_auth_is_not_offered_in_clear(self):
        host, port = self.lab.at["submission"].rsplit(":", 1)
        with smtplib.SMTP(host, int(port)) as client:
            client.ehlo()
            self.assertIn("starttls", client.esmtp_features)
            self.assertNotIn("auth", client.esmtp_features)
            code, text = client.docmd("AUTH", "PLAIN AHgAeQ==")
            self.assertIn(code, (530, 538), text)

    # --- refusals ---

    def test_wrong_password(self):
        with self.lab.client(login=False) as client:
            with self.assertRaises(smtplib.SMTPAuthenticationError) as refused:
                client.login(self.lab.at["username"], "not it")
            self.assertEqual(refused.exception.smtp_code, 535)
            self.assertTrue(refused.exception.smtp_error.startswith(b"5.7.8"))

    def test_unknown_user_is_answered_like_a_wrong_password(self):
        answers = []
        for user in (self.lab.at["username"], "nobody-by-this-name"):
            with self.lab.client(login=False) as client:
                client.ehlo()
                client.user, client.password = user, "not it"
                with self.assertRaises(smtplib.SMTPAuthenticationError) as refused:
                    client.auth("PLAIN", client.auth_plain)
                answers.append((refused.exception.smtp_code, refused.exception.smtp_error))
        self.assertEqual(answers[0], answers[1])

    def test_mail_before_auth(self):
        with self.lab.client(login=False) as client:
            client.ehlo()
            expect(client.mail(self.lab.sender), 530, "5.7.0")

    def test_sender_of_someone_else(self):
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            reply = client.mail("boss@elsewhere.example")
            if reply[0] == 250:  # a server may also wait for RCPT
                reply = client.rcpt("a@ok.test")
            expect(reply, 550, "5.7.1")

    def test_header_from_of_someone_else(self):
        raw = message("boss@elsewhere.example", "from@ok.test")
        with self.lab.client() as client:
            expect(self.lab.transaction(client, ["from@ok.test"], raw), 550, "5.7.1")

    def test_two_header_froms(self):
        raw = message(self.lab.sender, "from@ok.test", extra=b"From: boss@elsewhere.example\r\n")
        with self.lab.client() as client:
            code, text = self.lab.transaction(client, ["from@ok.test"], raw)
            self.assertEqual(code // 100, 5, text)

    def test_declared_too_large(self):
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            limit = int(client.esmtp_features["size"])
            self.assertGreater(limit, 0)
            expect(client.mail(self.lab.sender, [f"SIZE={limit + 1}"]), 552, "5.3.4")
            expect(client.mail(self.lab.sender, [f"SIZE={limit}"]), 250)

    def test_too_many_recipients(self):
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            expect(client.mail(self.lab.sender), 250)
            codes = []
            for n in range(5000):
                code, text = client.rcpt(f"r{n}@ok.test")
                codes.append(code)
                if code != 250:
                    break
            self.assertGreaterEqual(codes.count(250), 100, "RFC 5321 §4.5.3.1.8")
            self.assertEqual((code, text[:5]), (452, b"4.5.3"), "RFC 5321 §4.5.3.1.10")
            # The transaction goes on with those that were taken.
            expect(client.rset(), 250)

    def test_after_a_refusal_the_session_is_in_step(self):
        with self.lab.client() as client:
            client.ehlo_or_helo_if_needed()
            expect(client.docmd("DATA"), 503)
            expect(client.docmd("RCPT", "TO:<a@ok.test>"), 503)
            expect(client.mail(self.lab.sender), 250)
            expect(client.mail(self.lab.sender), 503)
            expect(client.docmd("RCPT", "TO:<no brackets"), 501)
            code, _ = client.docmd("BLURB")
            self.assertEqual(code, 500)
            expect(client.rcpt("step@ok.test"), 250)
            expect(client.data(message(self.lab.sender, "step@ok.test")), 250, "2.0.0")
        self.lab.arrived("step@ok.test")


if __name__ == "__main__":
    main()
