//! The program as it is called: what it prints, where, and with which exit code.

#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const CONFIG: &str = "hostname = \"mail.example.com\"\n[store]\npath = \"queue\"\n[tenants.shop]\nsenders = [\"*\"]\n\
    [[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.0/8\"]\ntenant = \"shop\"\n";

fn postrider(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command
        .args(arguments)
        .env_remove("POSTRIDER_ADMIN")
        .env("POSTRIDER_CONFIG", config);
    command
}

/// Exit code, standard output and standard error.
fn told(output: Output) -> (i32, String, String) {
    let text = |octets| String::from_utf8(octets).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn run(config: &Path, arguments: &[&str]) -> (i32, String, String) {
    told(postrider(config, arguments).output().unwrap())
}

fn folder() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("postrider.toml");
    std::fs::write(&config, CONFIG).unwrap();
    (folder, config)
}

#[test]
fn wrong_usage_and_configuration_are_2_and_say_how_to_begin() {
    let (folder, config) = folder();
    let none = folder.path().join("none.toml");
    let wrong = folder.path().join("wrong.toml");
    std::fs::write(&wrong, format!("{CONFIG}[submission]\nmax_recipient = 5\n")).unwrap();
    for (config, arguments, expected) in [
        (&none, vec!["run"], "there is no configuration"),
        (&none, vec!["run"], "postrider check --example"),
        (
            &wrong,
            vec!["run"],
            "wrong.toml:12:17: submission.max_recipient: is not known; is \"max_recipients\" meant?",
        ),
        (&wrong, vec!["check"], "is \"max_recipients\" meant?"),
        (&config, vec!["frobnicate"], "unrecognized subcommand"),
        (&config, vec!["message", "show", "5"], "32 hexadecimal digits"),
        (
            &config,
            vec!["queue", "list", "--admin", "tcp:1"],
            "write unix:PATH",
        ),
        (
            &config,
            vec!["credential", "add", "app", "--tenant", "nobody"],
            "there is no tenant \"nobody\"",
        ),
    ] {
        let (code, out, err) = run(config, &arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
    }
    let (code, out, _) = run(&wrong, &["check", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 2);
    assert_eq!(json["mistakes"][0]["line"], 12);
    assert_eq!(json["mistakes"][0]["key"], "submission.max_recipient");

    let (code, out, _) = run(&config, &["check"]);
    assert_eq!((code, out.ends_with("no mistakes\n")), (0, true));
    // What it says to begin with is right as it is.
    let (_, example, _) = run(&none, &["check", "--example"]);
    std::fs::write(&config, example).unwrap();
    assert_eq!(run(&config, &["check"]).0, 0);
}

#[test]
fn a_relay_that_does_not_run_is_1_in_one_line() {
    let (_folder, config) = folder();
    let (code, out, err) = run(&config, &["queue", "list"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.contains("queue/admin.sock: No such file") && err.lines().count() == 1,
        "{err}"
    );
    assert_eq!(err.matches("os error 2").count(), 1, "{err}");
}

/// What fails once the store is open ends as all else does, and not now and then by a signal.
#[test]
fn a_start_that_fails_is_1() {
    let (folder, config) = folder();
    let more = "[dns]\nservers = [\"127.0.0.1:1\"]\n[admin]\nsocket = \"absent/admin.sock\"\n";
    std::fs::write(&config, format!("{CONFIG}{more}")).unwrap();
    for _ in 0..10 {
        let output = postrider(&config, &["run"]).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{}: {err}", output.status);
        assert!(err.contains("the admin API's socket: "), "{err}");
    }
    assert!(folder.path().join("queue").exists());
}

#[test]
fn credentials_are_added_listed_and_removed() {
    let (folder, config) = folder();
    let (code, password, _) = run(&config, &["credential", "add", "app", "--tenant", "shop"]);
    assert_eq!((code, password.trim_end().len()), (0, 28));
    assert_eq!(
        run(&config, &["credential", "add", "app", "--tenant", "shop"]).0,
        1
    );

    let (code, _, told_why) = run(
        &config,
        &["credential", "add", "x", "--tenant", "shop", "--stream", "news"],
    );
    assert_eq!(code, 2);
    assert!(told_why.contains("there is no stream \"news\""), "{told_why}");

    let mut add = postrider(
        &config,
        &[
            "credential",
            "add",
            "own",
            "--tenant",
            "shop",
            "--stream",
            "bulk",
            "--password-stdin",
        ],
    )
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    add.stdin
        .take()
        .unwrap()
        .write_all(b"a password of mine\n")
        .unwrap();
    let (code, out, err) = told(add.wait_with_output().unwrap());
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    let kept = relay::credentials::file::read(&folder.path().join("credentials.toml")).unwrap();
    assert!(kept["own"].verifier.matches(b"a password of mine"));

    let (_, out, _) = run(&config, &["credential", "list"]);
    assert_eq!(out, "NAME  TENANT  STREAM\napp   shop\nown   shop    bulk\n");
    let (_, out, _) = run(&config, &["credential", "list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        json[0],
        serde_json::json!({ "name": "app", "tenant": "shop", "stream": null })
    );

    // A credential whose tenant has gone is a mistake that the same command can mend.
    std::fs::write(&config, CONFIG.replace("shop", "other")).unwrap();
    assert_eq!(run(&config, &["check"]).0, 2);
    for name in ["app", "own"] {
        assert_eq!(run(&config, &["credential", "remove", name]).0, 0);
    }
    assert_eq!(run(&config, &["check"]).0, 0);
    assert_eq!(run(&config, &["credential", "remove", "app"]).0, 1);
}

#[test]
fn a_labs_peer_has_to_be_a_domain_and_a_script() {
    let (folder, config) = folder();
    let script = folder.path().join("odd.smtp");
    std::fs::write(&script, "S: 220 hi\nwait\n").unwrap();
    let script = script.to_str().unwrap();
    for (peer, expected) in [
        ("odd.test".to_owned(), "as in odd.test=odd.smtp"),
        (format!("odd..test={script}"), "odd..test"),
        (format!("odd.test={script}"), "odd.smtp:2: \"wait\" is no step"),
        ("odd.test=/nowhere/at/all".to_owned(), "/nowhere/at/all"),
    ] {
        let (code, _, error) = run(&config, &["lab", "--peer", &peer]);
        assert_eq!(code, 2, "{peer}: {error}");
        assert!(error.contains(expected), "{peer}: {error}");
    }
}

#[test]
fn what_holds_for_a_destination_is_shown_with_where_it_is_from() {
    let (_folder, config) = folder();
    let more = "[delivery.limits]\nmessages_per_second = 50\n[[destination]]\ndomain = \"example.org\"\n[destination.limits]\nconnections = 2\n";
    std::fs::write(&config, format!("{CONFIG}{more}")).unwrap();
    let mx = ["--mx", "aspmx.l.google.com", "alt1.aspmx.l.google.com"];
    let (code, out, err) = run(
        &config,
        &[&["config", "effective", "example.org"], &mx[..]].concat(),
    );
    assert_eq!((code, err.as_str()), (0, ""));
    for expected in [
        "Domain       example.org\n".to_owned(),
        "MX hosts     aspmx.l.google.com, alt1.aspmx.l.google.com\n".to_owned(),
        "Provider     google (Google: Gmail and Workspace)\n".to_owned(),
        "Destination  the rule for example.org\n".to_owned(),
        format!("{}:16:15: destination[0].limits.connections\n", config.display()),
        format!(
            "{}:12:23: delivery.limits.messages_per_second\n",
            config.display()
        ),
        "shipped for google: community, 2026-08-04, https://".to_owned(),
    ] {
        assert!(out.contains(&expected), "{expected}: {out}");
    }
    let json = |arguments: &[&str]| -> serde_json::Value {
        let (code, out, err) = run(&config, &[&["config", "effective", "--json"], arguments].concat());
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let told = json(&[&["other.example"], &mx[..]].concat());
    assert_eq!(told["provider"]["name"], "google");
    assert_eq!(told["values"][2]["key"], "connections");
    assert_eq!(told["values"][2]["value"], "5");
    assert_eq!(told["values"][2]["from"]["kind"], "shipped");
    assert_eq!(told["values"][3]["from"]["line"], 12);
    assert_eq!(told["values"][5]["from"]["kind"], "default");

    // By the DNS: the name servers of the configuration.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let zone = lab::dns::Zone::default();
    zone.mx("hosted.test", 10, "mx1.qq.com").unwrap();
    zone.add(
        "null.test",
        hickory_proto::rr::RData::MX(hickory_proto::rr::rdata::MX::new(
            0,
            hickory_proto::rr::Name::root(),
        )),
    )
    .unwrap();
    let server = runtime
        .block_on(lab::dns::DnsServer::start("127.0.0.1:0".parse().unwrap(), zone))
        .unwrap();
    let dns = format!("[dns]\nservers = [\"{}\"]\n", server.address);
    std::fs::write(&config, format!("{CONFIG}{dns}")).unwrap();
    let told = json(&["hosted.test"]);
    assert_eq!(told["hosts"], serde_json::json!(["mx1.qq.com"]));
    assert_eq!(told["provider"]["name"], "qq");
    let (code, _, err) = run(&config, &["config", "effective", "null.test"]);
    assert_eq!(code, 1);
    assert!(err.contains("null.test accepts no mail"), "{err}");
    std::fs::write(
        &config,
        format!("{CONFIG}[dns]\nservers = [\"127.0.0.1:1\"]\n[delivery.timeouts]\ndns = \"200ms\"\n"),
    )
    .unwrap();
    let (code, _, err) = run(&config, &["config", "effective", "hosted.test"]);
    assert_eq!(code, 1);
    assert!(err.contains("say which with --mx"), "{err}");
    let (code, _, err) = run(&config, &["config", "effective", "not a domain"]);
    assert_eq!(code, 2, "{err}");
}

/// What is shown of mail to `x.example`.
fn effective(config: &Path, more: &[&str]) -> String {
    let arguments = ["config", "effective", "x.example", "--mx", "mx.x.example"];
    let (code, out, err) = run(config, &[&arguments, more].concat());
    assert_eq!((code, err.as_str()), (0, ""));
    out
}

#[test]
fn shares_of_a_tenant_and_all_fallbacks_are_shown() {
    let (_folder, config) = folder();
    let more = "[delivery]\npool = \"main\"\n\
        [[source]]\nname = \"out1\"\naddresses = [\"127.0.0.1\"]\n\
        [[source]]\nname = \"own\"\naddresses = [\"127.0.0.2\"]\n\
        [[pool]]\nname = \"main\"\nsources = [\"out1\", { name = \"own\", weight = 0, tenants = { shop = 3 } }]\n\
        [[route]]\nnext_hop = \"mx\"\nfallback = [\"a\", \"b\"]\n\
        [[smart_host]]\nname = \"a\"\nhosts = [{ host = \"a.example\" }]\n\
        [[smart_host]]\nname = \"b\"\nhosts = [{ host = \"b.example\" }]\n";
    std::fs::write(&config, format!("{CONFIG}{more}")).unwrap();
    let asked = |more: &[&str]| effective(&config, more);
    let out = asked(&[]);
    for expected in [
        "Fallback     smart host a, then b (",
        "Shares       mail of tenants shop has shares of its own: --tenant and --stream show them\n",
        "out1    100 %",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    assert!(!out.contains("\nown "), "{out}");
    let out = asked(&["--tenant", "shop"]);
    assert!(
        out.contains("out1    25 %") && out.contains("own     75 %"),
        "{out}"
    );
    let json: serde_json::Value = serde_json::from_str(&asked(&["--json"])).unwrap();
    assert_eq!(json["fallback"]["names"], serde_json::json!(["a", "b"]));
    assert_eq!(json["own_shares"]["tenants"], serde_json::json!(["shop"]));
}

#[test]
fn what_mail_is_sent_from_is_shown_for_whom_and_with_where_it_is_from() {
    let (_folder, config) = folder();
    let more = "[delivery]\npool = \"main\"\n\
        [[source]]\nname = \"out1\"\naddresses = [\"127.0.0.1\"]\nehlo = \"out1.example.com\"\n\
        [[source]]\nname = \"out2\"\nproxy = \"socks5://10.0.0.9:1080\"\n\
        [[pool]]\nname = \"main\"\nsources = [\"out1\"]\n\
        [[pool]]\nname = \"bulk\"\nsources = [{ name = \"out1\", weight = 3 }, \"out2\"]\n\
        [[route]]\nstreams = [\"bulk\"]\nfrom = [\"news.example\"]\nnext_hop = \"mx\"\npool = \"bulk\"\nfallback = \"relay\"\n\
        [[smart_host]]\nname = \"relay\"\nhosts = [{ host = \"relay.example\" }]\n";
    std::fs::write(&config, format!("{CONFIG}{more}")).unwrap();
    let asked = |more: &[&str]| effective(&config, more);
    let at = |place: &str| format!("{}:{place}", config.display());
    let out = asked(&[]);
    for expected in [
        "route[0] may send some of its mail to its MX hosts, from pool bulk, by smart host relay while that is down.\n".to_owned(),
        "Else goes to its MX hosts: no rule says otherwise\n".to_owned(),
        format!("Pool         main ({})\n", at("12:8: delivery.pool")),
        format!(
            "out1    100 %  127.0.0.1  out1.example.com      {}\n",
            at("14:8: source[0].name")
        ),
    ] {
        assert!(out.contains(&expected), "{expected}: {out}");
    }
    let out = asked(&["--stream", "bulk", "--from", "a@news.example", "--tenant", "shop"]);
    for expected in [
        "Goes to      its MX hosts, by route[0]\n".to_owned(),
        format!("Pool         bulk ({})\n", at("30:8: route[0].pool")),
        format!(
            "Fallback     smart host relay ({}), after 3 failures in a row (delivery.fallback_after)\n",
            at("31:12: route[0].fallback")
        ),
        "out1    75 %   127.0.0.1  out1.example.com".to_owned(),
        "out2    25 %              mail.example.com  socks5://10.0.0.9:1080".to_owned(),
    ] {
        assert!(out.contains(&expected), "{expected}: {out}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&asked(&["--stream", "bulk", "--from", "<>", "--json"])).unwrap();
    assert_eq!(json["pool"]["name"], "main");
    assert_eq!(json["way"]["route"], serde_json::Value::Null);
    assert_eq!(json["fallback"], serde_json::Value::Null);
    assert_eq!(json["sources"][0]["addresses"][0], "127.0.0.1");
    for (wrong, told) in [
        (["--tenant", "nobody"], "there is no tenant \"nobody\""),
        (["--stream", "none"], "there is no stream \"none\""),
    ] {
        let arguments = ["config", "effective", "x.example", "--mx", "mx.x.example"];
        let (code, _, err) = run(&config, &[&arguments, &wrong[..]].concat());
        assert_eq!(code, 2);
        assert!(err.contains(told), "{err}");
    }
}

#[test]
fn limits_that_all_mail_of_a_scope_shares_are_shown_with_where_they_are_from() {
    let (_folder, config) = folder();
    let more = "[delivery]\npool = \"main\"\n\
        [[source]]\nname = \"out1\"\naddresses = [\"127.0.0.1\"]\n\
        [[source]]\nname = \"out2\"\naddresses = [\"127.0.0.1\"]\n[source.warm_up]\nstart = \"2999-01-01\"\nfirst = 50\ndays = 9\n\
        [[pool]]\nname = \"main\"\nsources = [\"out1\", \"out2\"]\n\
        [[limit]]\nprovider = \"*\"\nconnections = 50\nmessages_per_connection = 30\n\
        [[limit]]\nprovider = \"google\"\nconnections = 40\n\
        [[limit]]\ntenant = \"shop\"\nmessages_per_hour = 100\n";
    std::fs::write(&config, format!("{CONFIG}{more}")).unwrap();
    let asked = |more: &[&str]| {
        let arguments = ["config", "effective", "x.example", "--mx", "aspmx.l.google.com"];
        let (code, out, err) = run(&config, &[&arguments, more].concat());
        assert_eq!((code, err.as_str()), (0, ""));
        out
    };
    let rows = |out: String| -> Vec<String> {
        let mut lines = out.lines().skip_while(|line| !line.starts_with("LIMIT OF"));
        lines.next().unwrap();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let place = format!("{}:", config.display());
        let all = lines.take_while(|line| !line.is_empty());
        all.map(|line| words(line).replace(&place, "")).collect()
    };
    assert_eq!(
        rows(asked(&["--tenant", "shop"])),
        [
            "provider google connections 40 32:15: limit[1].connections",
            "provider google messages_per_connection 30 29:27: limit[0].messages_per_connection",
            "tenant shop messages_per_hour 100 35:21: limit[2].messages_per_hour",
            "source out2, provider google messages_per_day 0 21:9: source[1].warm_up.first",
        ]
    );
    assert_eq!(
        rows(asked(&["--source", "out1"])).len(),
        2,
        "it is warm, and of no tenant"
    );
    let json: serde_json::Value = serde_json::from_str(&asked(&["--source", "out2", "--json"])).unwrap();
    let last = &json["shared_limits"][2];
    assert_eq!(last["source"], "out2");
    assert_eq!(
        (&last["key"], &last["value"]),
        (&"messages_per_day".into(), &"0".into())
    );
    let arguments = [
        "config",
        "effective",
        "x.example",
        "--source",
        "none",
        "--mx",
        "mx.test",
    ];
    let (code, _, err) = run(&config, &arguments);
    assert_eq!(
        (code, err.contains("there is no source \"none\"")),
        (2, true),
        "{err}"
    );
}

/// By the documentation's own addresses (RFC 5737), which no machine has.
#[test]
fn an_address_that_this_machine_has_not_is_told_by_the_check_and_at_the_start() {
    let (_folder, config) = folder();
    let source = "[[source]]\nname = \"out1\"\naddresses = [\"192.0.2.66\"]\n";
    std::fs::write(&config, format!("{CONFIG}{source}")).unwrap();
    if std::net::UdpSocket::bind("192.0.2.66:0").is_ok() {
        // net.ipv4.ip_nonlocal_bind: it may be had.
        assert_eq!(run(&config, &["check"]).0, 0);
        return;
    }
    for command in ["check", "run"] {
        let (code, _, err) = run(&config, &[command]);
        assert_eq!(code, 2, "{command}: {err}");
        let place = "postrider.toml:13:13: source[0].addresses: 192.0.2.66 is no address of this machine's";
        assert!(err.contains(place), "{command}: {err}");
    }
    for more in ["must_be_here = false\n", "proxy = \"socks5://10.0.0.9:1080\"\n"] {
        std::fs::write(&config, format!("{CONFIG}{source}{more}")).unwrap();
        let (code, _, err) = run(&config, &["check"]);
        assert_eq!(code, 0, "{err}");
    }
}
