//! The example configuration is right and whole, and each mistake is told as its folder expects.

use std::path::{Path, PathBuf};

use super::{load, load_with_keys};

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn write(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

/// The example without the settings it shows, and with every default it shows set.
fn example_with_defaults() -> String {
    let text = std::fs::read_to_string(repo("docs/postrider.example.toml")).unwrap();
    let is_default = |line: &str| {
        line.strip_prefix("# ")
            .and_then(|rest| rest.split_once(" = "))
            .is_some_and(|(key, _)| key.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'))
    };
    // What can't be set to its shown value on any machine, or has no default.
    let not_set = [
        "include",
        "certificate",
        "key",
        "address = \"127.0.0.1:8081\"",
        "tokens",
        "hosts",
        "domain",
        "selector",
        "ca_file",
        "source",
        "sources",
        "pool",
        "interface",
        "addresses",
        "ehlo = \"out1",
        "proxy",
        "proxy_user",
        "proxy_password_file",
        "proxy_password_env",
        "proxy_bind",
        "must_be_here",
        "start",
        "days",
        "first = 50",
        "factor = 1.5",
        "own_addresses",
        "servers",
        "messages_per_second",
        "to",
        "from",
        "tenants",
        "streams",
        "next_hop",
        "fallback",
        "reason",
        "stream",
        "weight",
        "expire_after = \"2d\"",
        "first = \"10m\"",
        "factor = 1.5",
        "cap = \"2h\"",
        "jitter = 0.1",
        "only_to",
        "redirect_all",
        "address = \"old",
        "becomes",
        "reverse_path",
        "header_from",
        "name",
        "hosts",
        "tls = \"required\"",
        "user",
        "password_file",
        "password_env",
        "allow_unverified_auth",
        "address_family = \"any\"",
        "connections = 10",
        "shipped_limits = false",
        "messages",
        "recipients",
        "max_messages",
        "max_bytes",
        "queue_share",
        "credential_messages",
        "credential_recipients",
        "address_connections",
        "address_messages",
        "archive",
        "reserved",
        "priority = \"none\"",
        "header_fields",
        "max_message = \"10MiB\"",
        "max_recipients = 500",
        "max_connections = 100",
    ];
    let lines = text.lines().map(|line| {
        let rest = line.strip_prefix("# ").unwrap_or(line);
        let skipped = not_set.iter().any(|key| {
            rest.starts_with(key) && (key.contains(" = ") || rest.starts_with(&format!("{key} = ")))
        });
        if is_default(line) && !skipped { rest } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_right() {
    let settings = load(&repo("docs/postrider.example.toml")).unwrap();
    assert_eq!(settings.hostname.as_str(), "mail.example.com");
    assert_eq!(settings.listeners.len(), 1);
}

/// Those of docs/deliverability.md.
#[test]
fn the_three_examples_are_right() {
    for name in ["one-application", "agency", "newsletter"] {
        let path = repo(&format!("docs/examples/{name}.toml"));
        let (_, problems, _) = load_with_keys(&path);
        // Where customers log in there is a certificate, which is not kept here.
        let (absent, wrong): (Vec<_>, Vec<_>) = problems
            .iter()
            .partition(|problem| problem.key.ends_with(".certificate"));
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(absent.len(), usize::from(name == "agency"), "{absent:?}");
    }
}

#[test]
fn the_example_shows_the_real_defaults() {
    let mut plain = load(&repo("docs/postrider.example.toml")).unwrap();
    let (_folder, path) = write("postrider.toml", &example_with_defaults());
    let mut spelt_out = load(&path).unwrap();
    assert_eq!(spelt_out.metrics.take(), Some("127.0.0.1:9464".parse().unwrap()));
    // Beside the one file and the other.
    for settings in [&mut plain, &mut spelt_out] {
        assert!(
            settings
                .credentials_file
                .take()
                .unwrap()
                .ends_with("credentials.toml")
        );
    }
    assert_eq!(format!("{plain:#?}"), format!("{spelt_out:#?}"));
}

#[test]
fn the_example_names_every_key() {
    let text = std::fs::read_to_string(repo("docs/postrider.example.toml")).unwrap();
    // Of lists and named tables only what is there is asked for: uncomment the DKIM table.
    let text = text.replace("# [[dkim]]", "[[dkim]]");
    let (_folder, path) = write("postrider.toml", &text);
    let (_, _, known) = load_with_keys(&path);
    assert!(known.len() > 60, "{known:?}");
    for key in known {
        let name = key.rsplit('.').next().unwrap().trim_end_matches("[]");
        let shown = text.lines().any(|line| {
            let line = line.trim_start_matches("# ");
            line.starts_with(&format!("{name} ="))
                || line.trim_matches(['[', ']']).split('.').any(|part| part == name)
        });
        assert!(shown, "{key} is not in the example");
    }
}

#[test]
fn every_mistake_is_told() {
    let folder = repo("relay/tests/bad_configs");
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let case = entry.unwrap().path();
        let expected = std::fs::read_to_string(case.join("expected")).unwrap();
        let told = match load(&case.join("postrider.toml")) {
            Err(mistakes) => mistakes.to_string().replace(&format!("{}/", case.display()), ""),
            Ok(_) => "no mistake found".to_owned(),
        };
        assert_eq!(told.trim(), expected.trim(), "{}", case.display());
        checked += 1;
    }
    assert!(checked >= 20, "{checked}");
}

#[test]
fn files_are_merged_and_a_key_set_twice_is_told_with_both_places() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("conf.d")).unwrap();
    put(
        "postrider.toml",
        "include = [\"conf.d/*.toml\"]\nhostname = \"a.example\"\n[store]\npath = \"q\"\n",
    );
    put(
        "conf.d/1.toml",
        "[tenants.t]\nsenders = [\"*\"]\n[[listener]]\nkind = \"trusted\"\naddress = \"127.0.0.1:25\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n",
    );
    let settings = load(&folder.path().join("postrider.toml")).unwrap();
    assert_eq!(settings.store.path, folder.path().join("q"));
    put("conf.d/2.toml", "hostname = \"b.example\"\n");
    let told = load(&folder.path().join("postrider.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("conf.d/2.toml:1:12: hostname: set before at"),
        "{told}"
    );
    assert!(told.contains("postrider.toml:2:12"), "{told}");
}

/// `postrider run --config postrider.toml`, and then a reload, which names the file from the root.
#[test]
fn from_where_the_file_is_named_makes_no_difference() {
    let text = "hostname = \"a.example\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n[[listener]]\n\
        kind = \"trusted\"\naddress = \"127.0.0.1:25\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n\
        [admin]\naddress = \"127.0.0.1:8081\"\n";
    let (_folder, path) = write("postrider.toml", text);
    let here = std::env::current_dir().unwrap();
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let relative = up.join(path.strip_prefix("/").unwrap());
    let (from_here, from_root) = (load(&relative).unwrap(), load(&path).unwrap());
    // The same but for the way there.
    let same = |path: &std::path::Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    assert!(from_here.store.path.is_absolute());
    let again = load(from_here.effective.file()).unwrap();
    let changes = from_here.effective.changes(&again.effective);
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(same(from_here.effective.file()), same(from_root.effective.file()));
}

#[test]
fn two_keys_that_would_sign_alike_are_told() {
    let text = "hostname = \"a.example\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n[[listener]]\n\
        kind = \"trusted\"\naddress = \"127.0.0.1:25\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n\
        [[dkim]]\ndomain = \"a.example\"\nselector = \"s1\"\nkey = \"key.pem\"\n";
    let (folder, path) = write("postrider.toml", text);
    let key = folder.path().join("key.pem");
    dkim_signer::key::generate_file(dkim_signer::Algorithm::Ed25519Sha256, &key).unwrap();
    assert_eq!(load(&path).unwrap().dkim.len(), 1);
    let again = "[[dkim]]\ndomain = \"a.example\"\nselector = \"s2\"\nkey = \"key.pem\"\n";
    std::fs::write(&path, format!("{text}{again}")).unwrap();
    let told = load(&path).unwrap_err().to_string();
    assert!(
        told.contains(
            "postrider.toml:18:7: dkim[1].key: a second ed25519 key for a.example: a domain has one rsa key, one ed25519 key, or both"
        ),
        "{told}"
    );
}

/// A mistake that no folder of the repository can hold, since the file's permissions are part of it.
#[test]
fn a_wrong_credentials_file_is_told() {
    let text = "hostname = \"a.example\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n[[listener]]\n\
        kind = \"trusted\"\naddress = \"127.0.0.1:25\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n";
    let (folder, path) = write("postrider.toml", text);
    // Not there yet: no mistake. Its default place is beside the configuration.
    let credentials = folder.path().join("credentials.toml");
    assert_eq!(load(&path).unwrap().credentials_file, Some(credentials.clone()));
    crate::credentials::file::add(&credentials, "app", "gone", None, None).unwrap();
    let told = load(&path).unwrap_err().to_string();
    assert!(
        told.contains("credentials: ") && told.contains("credential app is of tenant \"gone\""),
        "{told}"
    );
    crate::credentials::file::remove(&credentials, "app").unwrap();
    load(&path).unwrap();
    std::fs::set_permissions(&credentials, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let told = load(&path).unwrap_err().to_string();
    assert!(told.contains("everyone can read it"), "{told}");
}

/// As [`a_wrong_credentials_file_is_told`], for what we are to a smart host.
#[test]
fn a_smart_hosts_password_is_read_and_never_shown() {
    let text = "hostname = \"a.example\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n[[listener]]\n\
        kind = \"trusted\"\naddress = \"127.0.0.1:25\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n\
        [[smart_host]]\nname = \"out\"\nuser = \"me\"\npassword_file = \"out.password\"\nhosts = [{ address = \"[::1]\" }]\n";
    let (folder, path) = write("postrider.toml", text);
    let secret = folder.path().join("out.password");
    std::fs::write(&secret, "opensesame\n").unwrap();
    let mode = |mode| {
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(0o644);
    let told = load(&path).unwrap_err().to_string();
    assert!(told.contains("everyone can read it"), "{told}");
    mode(0o600);
    let settings = load(&path).unwrap();
    let host = &settings.routing.smart_hosts[0];
    assert_eq!(host.login.as_ref().unwrap().password.expose(), b"opensesame");
    assert_eq!(
        (host.hosts[0].port, host.tls),
        (587, super::settings::TlsLevel::Required)
    );
    assert!(!format!("{settings:?}").contains("opensesame"));
    for wrong in ["", "\n", "two\nlines\n"] {
        std::fs::write(&secret, wrong).unwrap();
        assert!(
            load(&path).unwrap_err().to_string().contains("a password"),
            "{wrong:?}"
        );
    }
}

#[test]
fn families_are_left_out_or_put_behind() {
    use super::settings::AddressFamily::*;
    let all = ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"].map(|text| text.parse().unwrap());
    for (family, expected) in [
        (Any, "2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2"),
        (Ipv4, "192.0.2.1 192.0.2.2"),
        (Ipv6, "2001:db8::1 2001:db8::2"),
        (PreferIpv4, "192.0.2.1 192.0.2.2 2001:db8::1 2001:db8::2"),
        (PreferIpv6, "2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2"),
    ] {
        let order: Vec<_> = family
            .order(all.to_vec())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(order.join(" "), expected);
    }
}

const LEAST: &str = "hostname = \"a.example\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n[[listener]]\n\
    kind = \"trusted\"\naddress = \"127.0.0.1:25\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n";

#[test]
fn hosts_are_whose_the_configuration_says() {
    let more = "[[provider]]\nname = \"google\"\nmx = [\"*.mail.ru\"]\n[[provider]]\nname = \"mail-ru\"\n\
        [[provider]]\nname = \"mine\"\nmx = [\"*.googlemail.com\", \"mx.example.net\"]\n";
    let (_folder, path) = write("postrider.toml", &format!("{LEAST}{more}"));
    let shaping = load(&path).unwrap().delivery.shaping;
    for (host, name) in [
        ("mxs.mail.ru", "google"),
        ("aspmx.l.google.com", "google"),
        ("aspmx2.googlemail.com", "mine"),
        ("mx.example.net", "mine"),
    ] {
        assert_eq!(&*shaping.providers.of_host(host).unwrap().name, name, "{host}");
    }
}

/// What `config show` prints says the same, every default spelt out.
#[test]
fn what_is_shown_of_rules_is_read_alike() {
    let more = "[[provider]]\nname = \"google\"\nmx = [\"*.mail.ru\"]\n[[provider]]\nname = \"mine\"\nmx = [\"mx.example.net\"]\n\
        [provider.limits]\nconnections = 3\n[[bounce_class]]\nname = \"full\"\n[[bounce_class]]\nname = \"block\"\npermanent = \"retry\"\n\
        [[bounce_rule]]\nclass = \"full\"\ntext = [\"no * room\"]\n[[destination]]\ndomain = \"b.example\"\n[destination.limits]\nconnections = 4\n";
    let (folder, path) = write("postrider.toml", &format!("{LEAST}{more}"));
    let before = load(&path).unwrap();
    let again = folder.path().join("again.toml");
    std::fs::write(&again, before.effective.to_toml()).unwrap();
    let after = load(&again).unwrap();
    assert_eq!(
        format!("{:#?}", before.delivery),
        format!("{:#?}", after.delivery)
    );
    assert!(before.effective.changes(&after.effective).is_empty());
}
