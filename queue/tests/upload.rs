//! Large bodies that come in by chunks: whole once accepted, gone when given up or cut short, never served wrong.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{block_on, end, message, settle};
use mail_core::MessageId;
use queue::rocks::RocksStore;
use queue::store::{Batch, Family, MemoryStore, Store};
use queue::{CommitError, Fate, NewMessage, Options, Queue, ReadError, Upload, Uploaded, keys};

const OPTIONS: Options = Options {
    min_free_bytes: 0,
    commit_patience: Duration::from_secs(60),
    limits: queue::Limits::NONE,
};

/// The chunk with this number, differing from all others.
fn chunk(number: u8) -> Bytes {
    vec![b'a' + number; keys::CHUNK - usize::from(number)].into()
}

/// A message of as many chunks as `rest` has and one.
fn large(number: u64, rest: Uploaded) -> Arc<NewMessage> {
    Arc::new(NewMessage {
        body: chunk(0),
        rest: Some(rest),
        ..(*message(number, &["ok.test", "second.test"], b"")).clone()
    })
}

fn id(number: u64) -> MessageId {
    message(number, &["ok.test"], b"").id
}

async fn begun(queue: &Queue, number: u64, chunks: u8) -> Upload {
    let mut upload = queue.upload(id(number));
    for number in 1..=chunks {
        upload.write(chunk(number)).await.unwrap();
    }
    upload
}

fn held(store: &dyn Store, family: Family) -> usize {
    let mut count = 0;
    store
        .scan(family, &[], &[u8::MAX; 21], &mut |_, _| {
            count += 1;
            true
        })
        .unwrap();
    count
}

/// What is left of bodies in a folder's store: chunks, and names of uploads.
fn left_in(folder: &Path) -> (usize, usize) {
    let store = RocksStore::open(&folder.join("store"), true).unwrap();
    (held(&store, Family::Body), held(&store, Family::Upload))
}

fn assert_whole(queue: &Queue, id: MessageId, chunks: u8) {
    let envelope = queue.envelope(id).unwrap().unwrap();
    assert_eq!(envelope.chunks.len(), usize::from(chunks) + 1);
    let mut bytes = 0;
    for (number, &sum) in (0..).zip(&envelope.chunks) {
        let read = queue.body_chunk(id, u32::from(number), sum).unwrap();
        assert_eq!(read, chunk(number));
        bytes += read.len() as u64;
    }
    assert_eq!(envelope.body_bytes, bytes);
    assert_eq!(queue.body(id, &envelope).unwrap().len() as u64, bytes);
}

#[test]
fn what_was_uploaded_is_whole_after_reopening_and_gone_with_the_last_end() {
    let folder = tempfile::tempdir().unwrap();
    let units = block_on(async {
        let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
        let rest = begun(&queue, 1, 3).await.finish();
        assert_eq!(rest.bytes(), (1..=3).map(|n| chunk(n).len() as u64).sum::<u64>());
        let accepted = queue.accept(large(1, rest)).await.unwrap();
        assert_whole(&queue, id(1), 3);
        let record = queue.info(accepted.units[0].queue).unwrap().unwrap();
        assert_eq!(
            record.bytes,
            25 + (0..=3).map(|n| chunk(n).len() as u64).sum::<u64>()
        );
        queue.close();
        accepted.units
    });
    assert_eq!(left_in(folder.path()), (4, 0));
    block_on(async {
        let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
        assert_whole(&queue, id(1), 3);
        for unit in units {
            settle(&queue, end(unit, Fate::Delivered)).await.unwrap();
        }
        queue.close();
    });
    assert_eq!(left_in(folder.path()), (0, 0));
}

#[test]
fn an_upload_given_up_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
        drop(begun(&queue, 1, 3).await);
        // Not accepted, for the message is another.
        let rest = begun(&queue, 2, 2).await.finish();
        assert_eq!(queue.accept(large(3, rest)).await, Err(CommitError::OtherUpload));
        // Nor is a chunk whose writer does not wait for it.
        let mut upload = queue.upload(id(4));
        let unheard = tokio::time::timeout(Duration::ZERO, upload.write(chunk(1)));
        let _ = unheard.await;
        drop(upload);
        queue.accept(message(5, &["ok.test"], b"hello")).await.unwrap();
        queue.close();
    });
    assert_eq!(left_in(folder.path()), (1, 0));

    let store = MemoryStore::new();
    block_on(async {
        let queue = Queue::in_memory(store.clone()).unwrap();
        let before = store.contents();
        let upload = begun(&queue, 1, 3).await;
        assert_eq!(held(&store, Family::Body), 3);
        drop(upload);
        assert_eq!(store.contents(), before);
    });
}

/// CASES, kill between two chunks: what had come in is swept at the start, and what was accepted stays.
#[test]
fn a_start_sweeps_what_had_not_come_in_whole() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
        let rest = begun(&queue, 1, 2).await.finish();
        queue.accept(large(1, rest)).await.unwrap();
        // As if the program were killed: nobody is left to give them up.
        std::mem::forget(begun(&queue, 2, 3).await);
        std::mem::forget(begun(&queue, 3, 1).await.finish());
        queue.close();
    });
    assert_eq!(left_in(folder.path()), (7, 2));
    let queue = Queue::open(folder.path(), &OPTIONS).unwrap();
    assert_whole(&queue, id(1), 2);
    queue.close();
    drop(queue);
    assert_eq!(left_in(folder.path()), (3, 0));
}

#[test]
fn a_power_cut_between_chunks_leaves_nothing_and_after_the_accept_everything() {
    let store = MemoryStore::new();
    block_on(async {
        let queue = Queue::in_memory(store.clone()).unwrap();
        queue.accept(message(1, &["ok.test"], b"hello")).await.unwrap();
        let upload = begun(&queue, 2, 3).await;
        // Chunks cost no sync.
        let cut = store.cut_power(0);
        assert_eq!((held(&cut, Family::Body), held(&cut, Family::Upload)), (1, 0));
        queue.accept(large(2, upload.finish())).await.unwrap();
        let cut = Queue::in_memory(store.cut_power(0)).unwrap();
        assert_whole(&cut, id(2), 3);
    });
}

#[test]
fn another_accept_in_between_syncs_the_chunks_that_came_before() {
    let store = MemoryStore::new();
    block_on(async {
        let queue = Queue::in_memory(store.clone()).unwrap();
        let upload = begun(&queue, 1, 2).await;
        queue.accept(message(2, &["ok.test"], b"hello")).await.unwrap();
        std::mem::forget(upload);
        let cut = store.cut_power(0);
        assert_eq!((held(&cut, Family::Body), held(&cut, Family::Upload)), (3, 1));
        let swept = cut.clone();
        Queue::in_memory(swept.clone()).unwrap();
        assert_eq!((held(&swept, Family::Body), held(&swept, Family::Upload)), (1, 0));
    });
}

#[test]
fn a_damaged_record_of_an_upload_is_swept_with_its_chunks() {
    let store = MemoryStore::new();
    block_on(async {
        let queue = Queue::in_memory(store.clone()).unwrap();
        std::mem::forget(begun(&queue, 1, 3).await);
        let mut batch = Batch::default();
        batch.put(Family::Upload, id(1).as_bytes(), b"damaged".to_vec());
        batch.put(Family::Upload, b"no id", b"".to_vec());
        store.write(&batch, true).unwrap();
        Queue::in_memory(store.clone()).unwrap();
        assert_eq!((held(&store, Family::Body), held(&store, Family::Upload)), (0, 0));
    });
}

#[test]
fn a_wrong_chunk_is_never_served() {
    let store = MemoryStore::new();
    block_on(async {
        let queue = Queue::in_memory(store.clone()).unwrap();
        let rest = begun(&queue, 1, 3).await.finish();
        queue.accept(large(1, rest)).await.unwrap();
        let envelope = queue.envelope(id(1)).unwrap().unwrap();
        let mut batch = Batch::default();
        batch.put(Family::Body, &keys::body(id(1), 2), chunk(1));
        batch.delete(Family::Body, &keys::body(id(1), 3));
        store.write(&batch, true).unwrap();
        let read = |number: u32| queue.body_chunk(id(1), number, envelope.chunks[number as usize]);
        assert_eq!(read(1).unwrap(), chunk(1));
        assert!(matches!(
            read(2),
            Err(ReadError::Damaged { what, .. }) if what == "checksum"
        ));
        assert!(matches!(read(3), Err(ReadError::Damaged { what, .. }) if what == "absent"));
        assert!(queue.body(id(1), &envelope).is_err());
    });
}

#[test]
fn too_little_space_refuses_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        min_free_bytes: u64::MAX,
        ..OPTIONS
    };
    block_on(async {
        let queue = Queue::open(folder.path(), &options).unwrap();
        let mut upload = queue.upload(id(1));
        assert_eq!(upload.write(chunk(1)).await, Err(CommitError::Full));
        queue.close();
    });
    assert_eq!(left_in(folder.path()), (0, 0));
}

#[test]
fn a_disk_that_fails_between_chunks_refuses_the_rest() {
    let store = MemoryStore::new();
    block_on(async {
        let queue = Queue::in_memory(store.clone()).unwrap();
        let mut upload = begun(&queue, 1, 1).await;
        store.set_failing(true);
        assert!(matches!(
            upload.write(chunk(2)).await,
            Err(CommitError::Failing(_))
        ));
        drop(upload);
        assert!(matches!(queue.status(), queue::Status::Failing(_)));
    });
    store.set_failing(false);
    Queue::in_memory(store.clone()).unwrap();
    assert_eq!((held(&store, Family::Body), held(&store, Family::Upload)), (0, 0));
}
