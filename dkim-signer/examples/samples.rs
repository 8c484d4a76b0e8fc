//! Writes sample messages, signed, into a folder, with `dns.json`: the TXT records that verify them (`tests/dkim/run.sh`).

use std::collections::BTreeMap;
use std::path::PathBuf;

#[path = "../tests/samples/mod.rs"]
mod samples;

fn main() {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("a folder to write to"));
    std::fs::create_dir_all(&folder).expect("a folder that can be made");
    let signer = samples::signer();
    for (name, message) in samples::MESSAGES {
        let signed = samples::signed(&signer, message);
        std::fs::write(folder.join(format!("{name}.eml")), signed).expect("a file that can be written");
    }
    let records: BTreeMap<String, String> = signer
        .keys()
        .map(dkim_signer::DomainKey::record)
        .map(|record| (record.name, record.text))
        .collect();
    let json = serde_json::to_vec_pretty(&records).expect("plain JSON");
    std::fs::write(folder.join("dns.json"), json).expect("a file that can be written");
}
