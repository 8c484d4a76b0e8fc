use std::path::PathBuf;

use super::*;
use crate::config::{load, look};

const HEAD: &str = "hostname = \"relay.test\"\n[store]\npath = \"q\"\n[tenants.t]\nsenders = [\"*\"]\n[[listener]]\n\
    kind = \"trusted\"\naddress = \"127.0.0.1:0\"\nnetworks = [\"127.0.0.1/32\"]\ntenant = \"t\"\n";

fn write(folder: &Path, more: &str) -> PathBuf {
    let path = folder.join("postrider.toml");
    std::fs::write(&path, format!("{HEAD}{more}")).unwrap();
    path
}

fn settings(more: &str) -> Settings {
    let folder = tempfile::tempdir().unwrap();
    load(&write(folder.path(), more)).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

#[test]
fn sources_and_pools_as_they_are_written() {
    let settings = settings(
        "[delivery]\npool = \"all\"\n\
         [[source]]\nname = \"out1\"\naddresses = [\"192.0.2.1\", \"2001:db8::1\"]\nehlo = \"out1.relay.test\"\n\
         [[source]]\nname = \"out2\"\ninterface = \"eth1\"\n\
         [[source]]\nname = \"far\"\nproxy = \"socks5://[2001:db8::9]:1080\"\n\
         [[pool]]\nname = \"all\"\nsources = [\"out1\", { name = \"out2\", weight = 3 }]\n",
    );
    let egress = &settings.delivery.egress;
    let pool = egress.default_pool.as_ref().unwrap();
    let members: Vec<_> = pool
        .members
        .iter()
        .map(|member| (&*member.source.name, member.weight))
        .collect();
    assert_eq!(members, [("out1", 1), ("out2", 3)]);
    let out1 = egress.source("out1").unwrap();
    assert_eq!(out1.ehlo.as_ref().unwrap().as_str(), "out1.relay.test");
    let (four, six): (IpAddr, IpAddr) = ("203.0.113.9".parse().unwrap(), "2001:db8:1::9".parse().unwrap());
    assert_eq!(out1.address_for(four), Some("192.0.2.1".parse().unwrap()));
    assert_eq!(out1.address_for(six), Some("2001:db8::1".parse().unwrap()));
    let out2 = egress.source("out2").unwrap();
    assert!(out2.reaches(four) && out2.reaches(six), "the system chooses");
    let far = egress.source("far").unwrap().proxy.as_ref().unwrap();
    assert_eq!(
        (far.to_string().as_str(), far.bind),
        ("socks5://[2001:db8::9]:1080", false)
    );
}

#[test]
fn without_sources_nothing_is_otherwise() {
    let egress = settings("[delivery]\nsource = \"192.0.2.25\"\n").delivery.egress;
    assert!(egress.sources.is_empty() && egress.pools.is_empty() && egress.default_pool.is_none());
}

#[test]
fn a_source_with_one_family_reaches_that_alone() {
    let egress = settings("[[source]]\nname = \"six\"\naddresses = [\"2001:db8::1\"]\n")
        .delivery
        .egress;
    assert!(!egress.sources[0].reaches("203.0.113.9".parse().unwrap()));
    assert!(egress.sources[0].reaches("2001:db8:1::9".parse().unwrap()));
}

#[test]
fn what_this_machine_has_not_is_told_with_its_place() {
    let settings = settings(
        "[[source]]\nname = \"here\"\naddresses = [\"192.0.2.1\"]\ninterface = \"eth0\"\n\
         [[source]]\nname = \"gone\"\naddresses = [\"192.0.2.1\", \"2001:db8::1\"]\n\
         [[source]]\nname = \"far\"\naddresses = [\"192.0.2.3\"]\nproxy = \"haproxy://10.0.0.9:2526\"\n\
         [[source]]\nname = \"late\"\naddresses = [\"192.0.2.4\"]\nmust_be_here = false\n\
         [[source]]\nname = \"other\"\ninterface = \"eth9\"\n[delivery]\nsource = \"192.0.2.5\"\n",
    );
    let own: IpAddr = "192.0.2.1".parse().unwrap();
    let problems = not_here(&settings, |address| address == own, |name| name == "eth0");
    let told: Vec<_> = problems
        .iter()
        .map(|problem| {
            (
                problem.line,
                problem.key.as_str(),
                problem.text.split(':').next().unwrap(),
            )
        })
        .collect();
    let first = HEAD.lines().count();
    assert_eq!(
        told,
        [
            (
                first + 20,
                "delivery.source",
                "192.0.2.5 is no address of this machine's"
            ),
            (first + 7, "source[1].addresses", "2001"),
            (
                first + 18,
                "source[4].interface",
                "there is no network interface eth9 here"
            ),
        ]
    );
    assert!(not_here(&settings, |_| true, |_| true).is_empty());
}

#[test]
fn a_proxys_password_is_read_anew_and_its_pools_hold_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let put = |text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    put("first\n");
    let path = write(
        folder.path(),
        "[delivery]\npool = \"p\"\n[[source]]\nname = \"far\"\nproxy = \"socks5://10.0.0.9:1080\"\nproxy_user = \"u\"\n\
         proxy_password_file = \"password\"\n[[pool]]\nname = \"p\"\nsources = [\"far\"]\n",
    );
    let mut settings = load(&path).unwrap();
    assert_eq!(password_files(&settings).collect::<Vec<_>>(), [file.as_path()]);
    put("Zweites-7\n");
    read_passwords_anew(&mut settings).unwrap();
    let pool = settings.delivery.egress.default_pool.as_ref().unwrap();
    let login = pool.members[0].source.proxy.as_ref().unwrap().login.as_ref();
    assert_eq!(login.unwrap().password.expose(), b"Zweites-7");
    put(&"x".repeat(256));
    assert!(
        read_passwords_anew(&mut settings)
            .unwrap_err()
            .contains("RFC 1929")
    );
    let (_, mistakes) = look(&path);
    assert!(mistakes.to_string().contains("RFC 1929"), "{mistakes}");
    assert!(
        !format!("{settings:?}").contains("Zweites-7"),
        "no secret is shown"
    );
}

#[test]
fn there_are_only_so_many() {
    use std::fmt::Write as _;
    let mut text = String::new();
    for number in 0..=MAX_SOURCES {
        writeln!(
            text,
            "[[source]]\nname = \"s{number}\"\naddresses = [\"192.0.2.1\"]"
        )
        .unwrap();
    }
    for number in 0..=MAX_POOLS {
        writeln!(text, "[[pool]]\nname = \"p{number}\"\nsources = [\"s1\"]").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let (_, mistakes) = look(&write(folder.path(), &text));
    let told: Vec<_> = mistakes.0.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(told, ["source[1000]", "pool[100]"]);
}

/// Each tenant with each stream is a pool of its own: what would be too many is told, and not left out in silence.
#[test]
fn too_many_shares_are_told() {
    let (tenants, streams, sources) = (400, 6, 40);
    let mut text = String::new();
    for tenant in 0..tenants {
        text += &format!("[tenants.t{tenant}]\nsenders = [\"*\"]\n");
    }
    for stream in 0..streams {
        text += &format!("[[stream]]\nname = \"s{stream}\"\n");
    }
    for source in 0..sources {
        text += &format!("[[source]]\nname = \"out{source}\"\naddresses = [\"127.0.1.{source}\"]\n");
    }
    let weights = |letter: char, count: usize| {
        let each = (0..count).map(|number| format!("{letter}{number} = 2"));
        each.collect::<Vec<_>>().join(", ")
    };
    let mut members = vec![format!(
        "{{ name = \"out0\", tenants = {{ {} }}, streams = {{ {} }} }}",
        weights('t', tenants),
        weights('s', streams)
    )];
    members.extend((1..sources).map(|source| format!("\"out{source}\"")));
    text += &format!("[[pool]]\nname = \"all\"\nsources = [{}]\n", members.join(", "));
    let folder = tempfile::tempdir().unwrap();
    let mistakes = load(&write(folder.path(), &text)).unwrap_err().to_string();
    assert!(
        mistakes.contains("name too many tenants and streams"),
        "{mistakes}"
    );
}
