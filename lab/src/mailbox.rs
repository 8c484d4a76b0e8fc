//! The mailboxes: what came in, byte for byte, with its envelope and the receiver's verdict.
//!
//! A message is two files under `mailboxes/DOMAIN/LOCAL/`: `N.eml`, the octets and nothing else, and `N.json`, the
//! [`Entry`], written last: without it the message is not there. What is in memory is an index, built anew from the files.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use mail_core::{Mailbox, ReversePath, Timestamp, header};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::verdict::Verdicts;

/// A subject longer than this is cut in lists.
const MAX_SUBJECT: usize = 998;

/// What is kept of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Everything, as files.
    #[default]
    All,
    /// Entries, in memory; no octets. For floods of messages that are compared by their digests.
    Digest,
}

/// How much a lab keeps. RCPT for a mailbox that has reached a bound is told 452.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Addresses with a mailbox.
    pub mailboxes: usize,
    /// Messages of one mailbox; an entry takes about 1 KiB of memory.
    pub messages: usize,
    /// Octets of one mailbox. The last message may go over it.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            mailboxes: 100_000,
            messages: 10_000,
            bytes: 1 << 30,
        }
    }
}

/// A message as a receiving host took it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The accepted recipients of the transaction.
    pub recipients: Vec<Mailbox>,
    /// MAIL FROM.
    pub mail_from: ReversePath,
    /// Where it came from.
    pub client: IpAddr,
    /// What the client called itself.
    pub helo: String,
    /// Protocol version and cipher suite; `None`: in clear.
    pub tls: Option<String>,
    /// When the final dot had been read.
    pub at: Timestamp,
    /// The octets between DATA and the final dot, dots unstuffed.
    pub raw: Bytes,
    /// `None` where the lab does not verify.
    pub verdicts: Option<Verdicts>,
}

/// A message in a mailbox, without its octets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// MAIL FROM; empty: the null sender.
    pub mail_from: String,
    /// All accepted recipients of the transaction that brought it.
    pub rcpt_to: Vec<String>,
    /// Where it came from.
    pub client: IpAddr,
    /// What the client called itself.
    pub helo: String,
    /// Protocol version and cipher suite; `None`: in clear.
    pub tls: Option<String>,
    /// When it came, RFC 3339.
    pub time: String,
    /// The same in milliseconds since 1970.
    pub time_ms: u64,
    /// Octets.
    pub size: u64,
    /// SHA-256 of the octets, in hexadecimal.
    pub sha256: String,
    /// The first Subject, unfolded, encoded words as they are.
    pub subject: Option<String>,
    /// SPF, DKIM and DMARC, where the lab verifies.
    #[serde(flatten)]
    pub verdicts: Option<Verdicts>,
}

impl Entry {
    fn of(delivery: &Delivery) -> Self {
        let at = i64::try_from(delivery.at.0).unwrap_or(i64::MAX);
        Self {
            mail_from: delivery.mail_from.to_string(),
            rcpt_to: delivery.recipients.iter().map(Mailbox::to_string).collect(),
            client: delivery.client,
            helo: delivery.helo.clone(),
            tls: delivery.tls.clone(),
            time: jiff::Timestamp::from_millisecond(at)
                .unwrap_or(jiff::Timestamp::MAX)
                .to_string(),
            time_ms: delivery.at.0,
            size: delivery.raw.len() as u64,
            sha256: hex(digest(&SHA256, &delivery.raw).as_ref()),
            subject: subject(&delivery.raw),
            verdicts: delivery.verdicts.clone(),
        }
    }
}

/// All mailboxes of a lab.
pub struct Mailboxes {
    dir: PathBuf,
    keep: Keep,
    limits: Limits,
    index: Mutex<HashMap<String, Contents>>,
}

#[derive(Default)]
struct Contents {
    messages: Vec<Filed>,
    bytes: u64,
    next_file: u64,
}

#[derive(Clone)]
struct Filed {
    file: u64,
    entry: Arc<Entry>,
}

impl Contents {
    fn push(&mut self, filed: Filed) {
        self.bytes += filed.entry.size;
        self.next_file = self.next_file.max(filed.file + 1);
        self.messages.push(filed);
    }
}

impl Mailboxes {
    /// Reads what `dir` holds from an earlier run; with [`Keep::All`] the folder is made where it is missing. Files that
    /// are not the lab's are passed over.
    pub fn open(dir: &Path, keep: Keep, limits: Limits) -> io::Result<Self> {
        let mut index = HashMap::new();
        if keep == Keep::All {
            fs::create_dir_all(dir)?;
            read_all(dir, &mut index)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            keep,
            limits,
            index: Mutex::new(index),
        })
    }

    /// Whether one more message fits, apart from its size.
    pub(crate) fn has_room(&self, mailbox: &Mailbox) -> bool {
        let index = self.index.lock();
        match index.get(&mailbox.to_string()) {
            Some(contents) => {
                contents.messages.len() < self.limits.messages && contents.bytes < self.limits.bytes
            }
            None => index.len() < self.limits.mailboxes,
        }
    }

    /// Files the message in the mailbox of each of its recipients, or in none. Blocks on the disk.
    pub fn file(&self, delivery: &Delivery) -> io::Result<()> {
        let entry = Arc::new(Entry::of(delivery));
        let mut filed: Vec<(String, Filed)> = Vec::with_capacity(delivery.recipients.len());
        for recipient in &delivery.recipients {
            let address = recipient.to_string();
            // Named twice in one transaction, it still is one message.
            if filed.iter().any(|(other, _)| *other == address) {
                continue;
            }
            let file = {
                let mut index = self.index.lock();
                let contents = index.entry(address.clone()).or_default();
                contents.next_file += 1;
                contents.next_file - 1
            };
            let entry = Arc::clone(&entry);
            filed.push((address, Filed { file, entry }));
        }
        if self.keep == Keep::All
            && let Err(error) = self.write(&filed, &delivery.raw)
        {
            for (address, filed) in &filed {
                for kind in ["json", "eml"] {
                    // Not written at all, perhaps.
                    let _ = fs::remove_file(self.path(address, filed.file, kind));
                }
            }
            return Err(error);
        }
        let mut index = self.index.lock();
        for (address, filed) in filed {
            index.entry(address).or_default().push(filed);
        }
        Ok(())
    }

    fn write(&self, filed: &[(String, Filed)], raw: &[u8]) -> io::Result<()> {
        for (address, Filed { file, entry }) in filed {
            let path = self.path(address, *file, "eml");
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(path, raw)?;
            fs::write(
                self.path(address, *file, "json"),
                serde_json::to_vec(entry.as_ref())?,
            )?;
        }
        Ok(())
    }

    /// The addresses that have mail, sorted, each with the number of its messages and their octets.
    pub fn list(&self) -> Vec<(String, usize, u64)> {
        let index = self.index.lock();
        let mut all: Vec<_> = index
            .iter()
            .filter(|(_, contents)| !contents.messages.is_empty())
            .map(|(address, contents)| (address.clone(), contents.messages.len(), contents.bytes))
            .collect();
        all.sort();
        all
    }

    /// The messages of an address, oldest first; `None` where it never had one.
    pub fn entries(&self, address: &str) -> Option<Vec<Arc<Entry>>> {
        let index = self.index.lock();
        let messages = &index.get(address)?.messages;
        (!messages.is_empty()).then(|| messages.iter().map(|filed| Arc::clone(&filed.entry)).collect())
    }

    /// The octets of an address's message `n`, from 0; `None` where there is none, or its octets were not kept. Blocks on
    /// the disk.
    pub fn raw(&self, address: &str, n: usize) -> io::Result<Option<Vec<u8>>> {
        let file = match self
            .index
            .lock()
            .get(address)
            .and_then(|contents| contents.messages.get(n))
        {
            Some(filed) if self.keep == Keep::All => filed.file,
            _ => return Ok(None),
        };
        fs::read(self.path(address, file, "eml")).map(Some)
    }

    /// Messages in all mailboxes.
    pub fn count(&self) -> usize {
        self.index
            .lock()
            .values()
            .map(|contents| contents.messages.len())
            .sum()
    }

    fn path(&self, address: &str, file: u64, kind: &str) -> PathBuf {
        let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
        let folder = self.dir.join(file_name(domain)).join(file_name(local));
        folder.join(format!("{file:08}.{kind}"))
    }
}

/// A name that no file system reads anything into: all but letters, digits, `-`, `_`, `+` and dots within is written as
/// `%XX`. A local part of 64 octets makes at most 192.
fn file_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for (at, octet) in text.bytes().enumerate() {
        match octet {
            b'.' if at > 0 => name.push('.'),
            b'-' | b'_' | b'+' => name.push(char::from(octet)),
            octet if octet.is_ascii_alphanumeric() => name.push(char::from(octet)),
            octet => name.push_str(&format!("%{octet:02X}")),
        }
    }
    name
}

fn text_of(name: &str) -> Option<String> {
    let mut text = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&octet, after)) = rest.split_first() {
        rest = after;
        if octet != b'%' {
            text.push(octet);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        text.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(text).ok()
}

fn read_all(dir: &Path, index: &mut HashMap<String, Contents>) -> io::Result<()> {
    for (domain, folder) in folders(dir)? {
        for (local, folder) in folders(&folder)? {
            let Ok(mailbox) = format!("{local}@{domain}").parse::<Mailbox>() else {
                continue;
            };
            let contents = read_mailbox(&folder)?;
            if !contents.messages.is_empty() {
                index.insert(mailbox.to_string(), contents);
            }
        }
    }
    Ok(())
}

fn folders(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Some(text) = entry.file_name().to_str().and_then(text_of)
        {
            found.push((text, entry.path()));
        }
    }
    Ok(found)
}

fn read_mailbox(folder: &Path) -> io::Result<Contents> {
    let mut found = Vec::new();
    for item in fs::read_dir(folder)? {
        let path = item?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.parse().ok());
        let (Some(file), Some("json")) = (number, path.extension().and_then(|kind| kind.to_str())) else {
            continue;
        };
        match serde_json::from_slice::<Entry>(&fs::read(&path)?) {
            Ok(entry) if path.with_extension("eml").is_file() => found.push(Filed {
                file,
                entry: Arc::new(entry),
            }),
            _ => tracing::warn!(file = %path.display(), "not a message of the lab's; passed over"),
        }
    }
    found.sort_by_key(|filed| filed.file);
    let mut contents = Contents::default();
    found.into_iter().for_each(|filed| contents.push(filed));
    Ok(contents)
}

fn subject(raw: &[u8]) -> Option<String> {
    let (block, _) = header::split(raw);
    let field = header::fields(block).find(|field| field.is("Subject"))?;
    let text = String::from_utf8_lossy(field.value()).replace("\r\n", "");
    Some(text.trim().chars().take(MAX_SUBJECT).collect())
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(recipients: &[&str], raw: &[u8]) -> Delivery {
        Delivery {
            recipients: recipients.iter().map(|to| to.parse().unwrap()).collect(),
            mail_from: ReversePath::Null,
            client: IpAddr::from([127, 0, 0, 1]),
            helo: "client.test".into(),
            tls: None,
            at: Timestamp(1_700_000_000_123),
            raw: Bytes::copy_from_slice(raw),
            verdicts: None,
        }
    }

    #[test]
    fn keeps_every_octet_and_finds_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<u8> = (0..=255).collect();
        let odd = [
            r#""../../x"@ok.test"#,
            "a/b@ok.test",
            "%2e%2e@ok.test",
            "ü@ok.test",
            "~.x@ok.test",
        ];
        {
            let boxes = Mailboxes::open(dir.path(), Keep::All, Limits::default()).unwrap();
            boxes
                .file(&delivery(&["a@ok.test", "b@second.test", "a@ok.test"], &all))
                .unwrap();
            boxes
                .file(&delivery(&["a@ok.test"], b"Subject: two\r\n words\r\n\r\n"))
                .unwrap();
            boxes.file(&delivery(&odd, b"odd")).unwrap();
        }
        fs::write(dir.path().join("ok.test/a/00000009.json"), "{").unwrap();
        fs::write(dir.path().join("ok.test/a/notes.txt"), "").unwrap();
        let boxes = Mailboxes::open(dir.path(), Keep::All, Limits::default()).unwrap();
        assert_eq!(boxes.entries("a@ok.test").unwrap().len(), 2);
        assert_eq!(boxes.raw("a@ok.test", 0).unwrap().unwrap(), all);
        assert_eq!(boxes.raw("b@second.test", 0).unwrap().unwrap(), all);
        assert_eq!(boxes.raw("a@ok.test", 2).unwrap(), None);
        assert_eq!(boxes.raw("c@ok.test", 0).unwrap(), None);
        assert!(boxes.entries("c@ok.test").is_none());
        let second = &boxes.entries("a@ok.test").unwrap()[1];
        assert_eq!(second.subject.as_deref(), Some("two words"));
        assert_eq!(second.time, "2023-11-14T22:13:20.123Z");
        for address in odd {
            assert_eq!(boxes.raw(address, 0).unwrap().unwrap(), b"odd", "{address}");
        }
        boxes.file(&delivery(&["a@ok.test"], b"three")).unwrap();
        assert_eq!(boxes.raw("a@ok.test", 2).unwrap().unwrap(), b"three");
        assert_eq!(boxes.count(), 9);
        // Nothing was written beside the folder.
        let top: Vec<_> = folders(dir.path())
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(
            top.iter().all(|name| name == "ok.test" || name == "second.test"),
            "{top:?}"
        );
    }

    #[test]
    fn a_full_mailbox_has_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits {
            mailboxes: 2,
            messages: 2,
            bytes: 10,
        };
        let boxes = Mailboxes::open(dir.path(), Keep::Digest, limits).unwrap();
        let [many, big, other] = ["many@ok.test", "big@ok.test", "other@ok.test"];
        let room = |address: &str| boxes.has_room(&address.parse().unwrap());
        boxes.file(&delivery(&[many], b"1")).unwrap();
        assert!(room(many) && room(big));
        boxes.file(&delivery(&[many], b"2")).unwrap();
        boxes.file(&delivery(&[big], b"0123456789")).unwrap();
        assert!(!room(many) && !room(big) && !room(other));
        assert_eq!(boxes.raw(many, 0).unwrap(), None);
        assert_eq!(
            boxes.entries(many).unwrap()[0].sha256,
            "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
