//! What real replies are taken for. Each is an excerpt of what a mail server says, cited as the page after it has it.

use super::super::Shaping;
use super::super::pattern::{CodePattern, TextPattern};
use super::super::providers::Provider;
use super::*;

/// Reply, host that says it (`""`: any), class, where the words are from.
const REAL: &[(&str, &str, &str, &str)] = &[
    // support.google.com/a/answer/3726730, and what of it github.com/sisimai/p5-sisimai Rhost/Google.pm quotes.
    (
        "550 5.1.1 The email account that you tried to reach does not exist.",
        "gmail-smtp-in.l.google.com",
        "unknown-user",
        "google",
    ),
    (
        "450 4.2.1 The user you are trying to contact is receiving mail too quickly.",
        "gmail-smtp-in.l.google.com",
        "rate",
        "google",
    ),
    (
        "550 5.2.1 The email account that you tried to reach is disabled.",
        "gmail-smtp-in.l.google.com",
        "disabled",
        "google",
    ),
    (
        "421 4.7.0 Our system has detected an unusual rate of unsolicited mail originating from your IP address.",
        "gmail-smtp-in.l.google.com",
        "rate",
        "google",
    ),
    (
        "421 4.7.28 Gmail has detected an unusual rate of mail originating from your DKIM domain",
        "aspmx.l.google.com",
        "rate",
        "google",
    ),
    (
        "452 4.2.2 The recipient's inbox is out of storage space.",
        "aspmx.l.google.com",
        "mailbox-full",
        "google",
    ),
    (
        "550 5.7.26 Unauthenticated email from example.com is not accepted due to domain's DMARC policy.",
        "aspmx.l.google.com",
        "auth",
        "google",
    ),
    (
        "421 4.7.27 Your email has been rate limited because SPF authentication didn't pass for this message.",
        "aspmx.l.google.com",
        "auth",
        "google",
    ),
    (
        "550 5.7.30 This mail has been blocked because DKIM does not pass. Gmail requires all large senders to authenticate with DKIM.",
        "aspmx.l.google.com",
        "auth",
        "google",
    ),
    (
        "550 5.7.1 Our system has detected that this message is likely suspicious due to the very low reputation of the sending IP address",
        "aspmx.l.google.com",
        "block",
        "google",
    ),
    (
        "550 5.7.25 The IP address sending this message does not have a PTR record setup",
        "",
        "auth",
        "google",
    ),
    (
        "552 5.3.4 Your message exceeded Google's message size limits.",
        "aspmx.l.google.com",
        "size",
        "google",
    ),
    (
        "421 4.7.0 TLS required for RCPT domain, closing connection.",
        "aspmx.l.google.com",
        "tls",
        "google",
    ),
    (
        "421 4.4.5 Server busy, try again later.",
        "aspmx.l.google.com",
        "system",
        "google",
    ),
    (
        "554 5.4.6 Message exceeded 50 hops, this may indicate a mail loop.",
        "aspmx.l.google.com",
        "loop",
        "google",
    ),
    // github.com/sisimai/p5-sisimai Rhost/Microsoft.pm; github.com/KumoCorp/kumomta assets/community.
    (
        "550 5.7.1 Unfortunately, messages from [192.0.2.5] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3150).",
        "outlook-com.olc.protection.outlook.com",
        "block",
        "microsoft",
    ),
    (
        "451 4.7.650 The mail server [192.0.2.5] has been temporarily rate limited due to IP reputation.",
        "hotmail-com.olc.protection.outlook.com",
        "block",
        "microsoft",
    ),
    (
        "550 5.4.1 Recipient address rejected: Access denied.",
        "contoso-com.mail.protection.outlook.com",
        "unknown-user",
        "microsoft",
    ),
    (
        "550 5.5.0 Requested action not taken: mailbox unavailable",
        "outlook-com.olc.protection.outlook.com",
        "unknown-user",
        "microsoft",
    ),
    (
        "550 5.7.509 Access denied, sending domain example.com does not pass DMARC verification",
        "contoso-com.mail.protection.outlook.com",
        "auth",
        "microsoft",
    ),
    (
        "550 5.7.606 Access denied, banned sending IP [192.0.2.5]",
        "contoso-com.mail.protection.outlook.com",
        "block",
        "microsoft",
    ),
    (
        "451 4.7.500 Server busy. Please try again later from [192.0.2.5].",
        "contoso-com.mail.protection.outlook.com",
        "rate",
        "microsoft",
    ),
    // github.com/sisimai/p5-sisimai Rhost/YahooInc.pm.
    (
        "421 4.7.0 [TSS04] Messages from 192.0.2.25 temporarily deferred due to unexpected volume or user complaints",
        "mta5.am0.yahoodns.net",
        "block",
        "yahoo",
    ),
    (
        "553 5.7.2 [TSS09] All messages from 192.0.2.25 will be permanently deferred; Retrying will NOT succeed.",
        "mta5.am0.yahoodns.net",
        "block",
        "yahoo",
    ),
    (
        "553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.25, because the ip is in Spamhaus's list",
        "mta5.am0.yahoodns.net",
        "block",
        "yahoo",
    ),
    (
        "554 delivery error: dd This user doesn't have a yahoo.com account",
        "mta5.am0.yahoodns.net",
        "unknown-user",
        "yahoo",
    ),
    (
        "552 1 Requested mail action aborted, mailbox not found",
        "mta5.am0.yahoodns.net",
        "unknown-user",
        "yahoo",
    ),
    (
        "554 30 Sorry, your message cannot be delivered. This mailbox is disabled (554.30)",
        "mta5.am0.yahoodns.net",
        "disabled",
        "yahoo",
    ),
    (
        "550 5.7.9 This mail has been blocked because the sender is unauthenticated.",
        "mta5.am0.yahoodns.net",
        "auth",
        "yahoo",
    ),
    (
        "421 Max message per connection reached, closing transmission channel",
        "mta5.am0.yahoodns.net",
        "rate",
        "yahoo",
    ),
    // smtp.codes/icloud; github.com/sisimai/p5-sisimai Rhost/Apple.pm.
    (
        "421 4.7.1 Messages to bob@icloud.com deferred due to excessive volume.",
        "mx01.mail.icloud.com",
        "rate",
        "apple",
    ),
    (
        "550 5.7.1 [CS01] Message rejected due to local policy.",
        "mx01.mail.icloud.com",
        "policy",
        "apple",
    ),
    (
        "550 5.7.1 Your email was rejected due to having a domain present in the Spamhaus DBL",
        "mx01.mail.icloud.com",
        "block",
        "apple",
    ),
    (
        "554 5.7.1 Your message was rejected due to example.jp's DMARC policy.",
        "mx01.mail.icloud.com",
        "auth",
        "apple",
    ),
    (
        "552 5.2.2 <bob@icloud.com>: user is over quota",
        "mx01.mail.icloud.com",
        "mailbox-full",
        "apple",
    ),
    (
        "554 5.7.1 <bob@icloud.com>: Relay access denied",
        "mx01.mail.icloud.com",
        "relay-denied",
        "apple",
    ),
    (
        "550 5.1.6 recipient no longer on server: bob@icloud.com",
        "mx01.mail.icloud.com",
        "unknown-user",
        "apple",
    ),
    (
        "450 4.1.8 <kijitora@example.jp>: Sender address rejected: Domain not found",
        "mx01.mail.icloud.com",
        "bad-sender",
        "apple",
    ),
    // postmaster.gmx.com/en/error-messages; smtp.codes/unitedinternet; suped.com on 421 of web.de.
    (
        "554 gmx.net (mxgmx104) Nemesis ESMTP Service not available No SMTP service IP address is block listed.",
        "mx00.gmx.net",
        "block",
        "gmx",
    ),
    (
        "421 web.de (mxweb113) Nemesis ESMTP Service not available Reject due to policy restrictions Too many messages have been received in a short period of time.",
        "mx-ha02.web.de",
        "rate",
        "gmx",
    ),
    (
        "550 Requested action not taken: mailbox unavailable",
        "mx01.gmx.net",
        "unknown-user",
        "gmx",
    ),
    (
        "550 Reject due to SPF policy. The originating IP of the message is not permitted by the domain owner",
        "mx01.gmx.net",
        "auth",
        "gmx",
    ),
    // github.com/sisimai/p5-sisimai Rhost/FrancePTT.pm; bentonow.com/smtp-errors/{sfr,laposte}.
    (
        "421 mwinf5c79 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. OFR005_104 [104]",
        "smtp-in.orange.fr",
        "rate",
        "orange",
    ),
    (
        "550 mwinf5c04 ME Adresse IP source bloquee pour incident de spam.",
        "smtp-in.orange.fr",
        "block",
        "orange",
    ),
    (
        "552 5.1.1 Boite du destinataire pleine. Recipient overquota. OFR_417 [417]",
        "smtp-in.orange.fr",
        "mailbox-full",
        "orange",
    ),
    (
        "450 4.7.1 Service refused due to bad behavior SFR_IN_101",
        "smtp-in.sfr.fr",
        "spam",
        "sfr",
    ),
    (
        "550 5.5.0 Le compte du destinataire est bloque. The recipient account isblocked. LPN007_426",
        "smtpz4.laposte.net",
        "disabled",
        "laposte",
    ),
    (
        "571 5.7.1 Message refused, DMARC verification Failed. LPN007_517",
        "smtpz4.laposte.net",
        "auth",
        "laposte",
    ),
    // forums.cox.com; spamresource.com/2019/10/charterroadrunner-bounces.html; postmaster.comcast.net.
    (
        "421 cmsmtp blocked. Refer to Error Codes section for more information. AUP#CXCNCT",
        "cxr.mx.a.cloudfilter.net",
        "rate",
        "cox",
    ),
    (
        "550 5.1.0 sender rejected AUP#I-1310",
        "mx0.charter.net",
        "rate",
        "spectrum",
    ),
    (
        "554 esmtp ESMTP server not available AUP#I-1010",
        "mx0.charter.net",
        "block",
        "spectrum",
    ),
    (
        "421 Too many sessions opened",
        "mx1a1.comcast.net",
        "rate",
        "comcast",
    ),
    // github.com/sisimai/p5-sisimai Rhost/Tencent.pm; yandex.com/support; github.com/KumoCorp/kumomta bounces.toml.
    ("550 Ip frequency limited", "mx1.qq.com", "rate", "qq"),
    ("550 Mail content denied", "mx1.qq.com", "spam", "qq"),
    ("550 Mailbox not found", "mx1.qq.com", "unknown-user", "qq"),
    (
        "554 5.7.1 Message rejected under suspicion of SPAM",
        "mx.yandex.ru",
        "spam",
        "yandex",
    ),
    (
        "550 Message was not accepted -- invalid mailbox",
        "mxs.mail.ru",
        "unknown-user",
        "mail.ru",
    ),
    ("550 spam message rejected.", "mxs.mail.ru", "spam", "mail.ru"),
    // github.com/sisimai/p5-sisimai Rhost/Mimecast.pm.
    (
        "451 Internal resources are temporarily unavailable",
        "eu-smtp-inbound-1.mimecast.com",
        "greylist",
        "mimecast",
    ),
    (
        "550 SPF Sender Invalid - envelope rejected",
        "eu-smtp-inbound-1.mimecast.com",
        "auth",
        "mimecast",
    ),
    (
        "550 Invalid Recipient",
        "eu-smtp-inbound-1.mimecast.com",
        "unknown-user",
        "mimecast",
    ),
    // bytecamp.net/de/faq/email/zustellen.html.
    (
        "450 4.7.1 Client host rejected: cannot find your reverse hostname",
        "",
        "auth",
        "bytecamp",
    ),
    (
        "450 4.2.0 Recipient address rejected: Greylisted",
        "",
        "greylist",
        "bytecamp",
    ),
    (
        "421 4.7.0 Error: too many connections from 192.0.2.1",
        "",
        "rate",
        "bytecamp",
    ),
    (
        "422 4.2.2 Quota limit exceeded (Speicherplatz des Kontos ueberschritten)",
        "",
        "mailbox-full",
        "bytecamp",
    ),
    ("571 5.7.1 message classified as spam", "", "spam", "bytecamp"),
    // sitepackage.de/service/dokumentation/auswertung/typische-fehlermeldungen-bei-unzustellbarkeit.html.
    ("550 5.1.1 user unknown", "", "unknown-user", "sitepackage"),
    (
        "552 5.2.2 Over STORAGE quota",
        "mx00.t-online.de",
        "mailbox-full",
        "sitepackage",
    ),
    (
        "550 Benutzer nicht bekannt/User unknown",
        "",
        "unknown-user",
        "sitepackage",
    ),
    ("550 unrouteable address", "", "bad-domain", "sitepackage"),
    ("552 Error: message too large", "", "size", "sitepackage"),
    ("550 Protocol violation", "", "protocol", "sitepackage"),
    // github.com/sisimai/p5-sisimai lib/Sisimai/Reason: the words that it looks for.
    (
        "550 5.7.1 Service unavailable; client [192.0.2.1] blocked using Spamhaus",
        "",
        "block",
        "sisimai",
    ),
    ("550 5.7.1 relaying denied", "", "relay-denied", "sisimai"),
    (
        "554 5.7.1 Recipient address rejected: Access denied",
        "",
        "unknown-user",
        "sisimai",
    ),
    (
        "553 sorry, that domain isn't in my list of allowed rcpthosts",
        "",
        "relay-denied",
        "sisimai",
    ),
    (
        "554 5.6.0 Message contains NUL characters, malformed",
        "",
        "content",
        "sisimai",
    ),
    (
        "550 5.7.1 message rejected for policy reasons",
        "",
        "policy",
        "sisimai",
    ),
    // smtp.codes/zoho.
    (
        "552 5.7.1 virus [name] detected by Zoho Mail",
        "mx.zoho.com",
        "virus",
        "zoho",
    ),
    (
        "452 Mailbox delivery restricted by policy error",
        "mx.zoho.com",
        "policy",
        "zoho",
    ),
    // RFC 5321 §4.2.3, RFC 4954 §6, RFC 7505 §4.2, RFC 3463.
    (
        "556 5.1.10 Recipient address has null MX",
        "",
        "bad-domain",
        "rfc",
    ),
    ("530 5.7.0 Authentication required", "", "relay-denied", "rfc"),
    ("503 Bad sequence of commands", "", "protocol", "rfc"),
    ("452 4.5.3 Too many recipients", "", "rate", "rfc"),
    ("550 5.2.2 nothing else is said", "", "mailbox-full", "rfc"),
    ("450 4.1.1 unverified address", "", "unknown-user", "rfc"),
    ("550 No", "", "other", "rfc"),
    ("551 Goodbye", "", "unknown-user", "rfc"),
    // What this relay says itself.
    ("4.4.3 example.org MX: timed out", "", "dns", "ours"),
    (
        "4.4.1 mx.example.org: connection refused",
        "",
        "connection",
        "ours",
    ),
    ("4.7.5 mx.example.org: TLS: bad certificate", "", "tls", "ours"),
    ("550 5.1.2 example.org does not exist", "", "bad-domain", "ours"),
    (
        "554 5.4.6 mail for example.org loops back to this relay",
        "",
        "loop",
        "ours",
    ),
    ("4.4.7 delivery time expired", "", "expired", "ours"),
    ("held back by hand", "", "other", "ours"),
    (
        "4.4.7 delivery time expired; last: 450 4.2.2 over quota",
        "",
        "mailbox-full",
        "ours",
    ),
    ("connection lost at RCPT", "", "connection", "ours"),
    (
        "silence for too long after the final dot",
        "",
        "connection",
        "ours",
    ),
    (
        "552 5.3.4 the message has 20 octets, the host takes 10",
        "",
        "size",
        "ours",
    ),
    (
        "554 5.6.3 the message is 8-bit, and the host takes 7-bit only",
        "",
        "content",
        "ours",
    ),
];

#[test]
fn real_replies_are_taken_for_what_they_are() {
    let shaping = Shaping::shipped();
    let mut wrong = Vec::new();
    for (said, host, class, source) in REAL {
        let found = &shaping
            .class(said, Some(host).filter(|host| !host.is_empty()).copied())
            .name;
        if **found != **class {
            wrong.push(format!("{source}: {said}: {found}, not {class}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(REAL.len() >= 80);
}

/// Every class of the table is met by some reply.
#[test]
fn every_class_is_met() {
    for class in Shaping::shipped().classes.all() {
        let met = REAL.iter().any(|(_, _, name, _)| **name == *class.name);
        assert!(met, "{}", class.name);
        assert!(!class.meaning.is_empty());
        assert_eq!(
            (class.temporary, class.permanent),
            (Then::Retry, Then::End),
            "{}",
            class.name
        );
    }
}

fn rule(class: ClassId, codes: &[&str], text: &[&str], provider: Option<&str>) -> Rule {
    Rule {
        codes: codes
            .iter()
            .map(|code| code.parse::<CodePattern>().unwrap())
            .collect(),
        text: text
            .iter()
            .map(|text| text.parse::<TextPattern>().unwrap())
            .collect(),
        provider: provider.map(Arc::from),
        class,
        advice: None,
    }
}

#[test]
fn rules_of_the_configuration_come_first_in_their_order() {
    let mut classes = Shaping::shipped().classes.clone();
    let (full, rate, spam) = (
        classes.find("mailbox-full").unwrap(),
        classes.find("rate").unwrap(),
        classes.find("spam").unwrap(),
    );
    classes.add(rule(rate, &["5.1.1"], &["come*slowly"], None));
    classes.add(rule(spam, &["5.1.1"], &[], Some("acme")));
    classes.add(rule(full, &["55x"], &["slowly"], None));
    let acme = Provider::new("acme".into());
    let name =
        |said, provider: Option<&Provider>| classes.get(classes.look_up(said, provider).0).name.to_string();
    assert_eq!(name("550 5.1.1 Come more slowly", None), "rate");
    assert_eq!(name("550 5.1.1 no such user", None), "unknown-user");
    assert_eq!(name("550 5.1.1 no such user", Some(&acme)), "spam");
    assert_eq!(name("553 5.7.1 slowly", None), "mailbox-full");
    assert_eq!(name("453 4.7.1 slowly", None), "policy");
}
