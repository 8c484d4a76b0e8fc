use std::sync::atomic::AtomicU64;

use queue::store::{Batch, Family, Store};
use queue::{NewMessage, UnitKey, keys};

use super::super::tests::{NOW, PLAIN, World, message};
use super::*;
use crate::delivery::courier::Kept;
use crate::seven_bit::MAX_CONVERTED;

/// A message that was uploaded, cut at each of `cuts`.
pub(crate) async fn accepted(world: &World, text: &[u8], cuts: &[usize]) -> Vec<UnitKey> {
    let small = message("");
    let mut upload = world.queue.upload(small.id);
    for cut in cuts.windows(2) {
        let chunk = Bytes::copy_from_slice(&text[cut[0]..cut[1]]);
        upload.write(chunk).await.unwrap();
    }
    let last = *cuts.last().unwrap();
    upload.write(Bytes::copy_from_slice(&text[last..])).await.unwrap();
    let large = NewMessage {
        body: Bytes::copy_from_slice(&text[..cuts[0]]),
        rest: Some(upload.finish()),
        ..(*small).clone()
    };
    world.queue.accept(Arc::new(large)).await.unwrap().units
}

async fn read(preparer: &Preparer, prepared: &Prepared) -> Vec<u8> {
    let mut whole = prepared.body.to_vec();
    let reader = preparer.reader(prepared.rest.clone().unwrap());
    let mut number = 0;
    while let Some(chunk) = reader.chunk(number).await.unwrap() {
        whole.extend_from_slice(&chunk);
        number += 1;
    }
    whole
}

#[tokio::test]
async fn a_large_message_is_signed_as_the_whole_one_is() {
    let text = format!("{PLAIN} \t\r\n\r\nwhite  space \r\n.\r\n\r\n \r\n");
    let header = text.find("\r\n\r\n").unwrap() + 4;
    let whole = World::new();
    let small = message(&text);
    let unit = whole.queue.accept(small.clone()).await.unwrap().units[0];
    let expected = whole
        .preparer(&[&whole.key])
        .prepare(unit, None, NOW)
        .await
        .unwrap();
    for cut in header..text.len() - 1 {
        let world = World::new();
        let units = accepted(&world, text.as_bytes(), &[cut, cut + 1]).await;
        let preparer = world.preparer(&[&whole.key]);
        let prepared = preparer.prepare(units[1], None, NOW).await.unwrap();
        assert_eq!(prepared.head, expected.head, "cut at {cut}");
        assert!(!prepared.eight_bit && !prepared.utf8_header);
        assert_eq!(read(&preparer, &prepared).await, text.as_bytes());
        // A report has its header, and does not claim to have all of it.
        let rest = prepared.rest.clone().unwrap();
        assert_eq!(prepared.original().rest_bytes, rest.bytes());
        assert_eq!(rest.bytes() as usize + cut, text.len());
    }
}

#[tokio::test]
async fn octets_of_every_chunk_decide_what_is_eight_bit() {
    for (text, eight_bit) in [
        ("gr\u{fc}n\r\nabc\r\n", true),
        ("abc\r\ngr\u{fc}n\r\n", true),
        ("abc\r\nabc\r\n", false),
    ] {
        let text = format!("{PLAIN}{text}");
        for keys in [0, 1] {
            let world = World::new();
            let units = accepted(&world, text.as_bytes(), &[PLAIN.len(), text.len() - 5]).await;
            let signing = [&world.key];
            let preparer = world.preparer(&signing[..keys]);
            let prepared = preparer.prepare(units[0], None, NOW).await.unwrap();
            assert_eq!(prepared.eight_bit, eight_bit, "{text:?}");
        }
    }
}

#[tokio::test]
async fn nothing_of_a_damaged_message_is_prepared_or_read() {
    let text = format!("{PLAIN}second\r\nthird\r\n");
    let world = World::new();
    let units = accepted(&world, text.as_bytes(), &[PLAIN.len(), text.len() - 7]).await;
    let preparer = world.preparer(&[]);
    let before = preparer.prepare(units[0], None, NOW).await.unwrap();
    let mut batch = Batch::default();
    batch.put(Family::Body, &keys::body(units[0].id, 2), &b"other\r\n"[..]);
    world.store.write(&batch, true).unwrap();
    assert!(matches!(
        preparer.prepare(units[0], None, NOW).await,
        Err(PrepareError::Read(ReadError::Damaged { .. }))
    ));
    // Damaged while it is being sent.
    let reader = preparer.reader(before.rest.unwrap());
    assert_eq!(reader.chunk(0).await.unwrap().unwrap(), "second\r\n");
    assert!(matches!(
        reader.chunk(1).await,
        Err(PrepareError::Read(ReadError::Damaged { .. }))
    ));
    assert!(reader.chunk(2).await.unwrap().is_none());
}

#[tokio::test]
async fn a_large_message_is_converted_unless_it_is_too_large_for_that() {
    let head = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
                Content-Transfer-Encoding: 8bit\r\n\r\na meadow is gr\u{fc}n\r\n";
    let world = World::new();
    let units = accepted(
        &world,
        format!("{head}and a rose r\u{f6}t\r\n").as_bytes(),
        &[head.len()],
    )
    .await;
    let preparer = world.preparer(&[]);
    let prepared = preparer.prepare(units[0], None, NOW).await.unwrap();
    let converted = preparer.seven_bit(units[0].id, prepared, NOW).await.unwrap();
    assert!(converted.rest.is_none() && !converted.eight_bit);
    let text = String::from_utf8(converted.body.to_vec()).unwrap();
    assert!(text.ends_with("gr=C3=BCn\r\nand a rose r=C3=B6t\r\n"), "{text}");

    let world = World::new();
    let line = "x".repeat(998) + "\r\n";
    let text = head.to_owned() + &line.repeat(MAX_CONVERTED / line.len() + 1);
    let units = accepted(&world, text.as_bytes(), &[head.len()]).await;
    let preparer = world.preparer(&[]);
    let prepared = preparer.prepare(units[0], None, NOW).await.unwrap();
    let same = preparer.seven_bit(units[0].id, prepared, NOW).await.unwrap();
    assert!(same.rest.is_some() && same.eight_bit);
}

/// However many hosts take 7-bit alone, and however slowly they read.
#[tokio::test(start_paused = true)]
async fn large_messages_in_seven_bits_have_a_bound_all_together() {
    let world = World::new();
    let head = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n";
    let text = head.to_owned() + &"gr\u{fc}n\r\n".repeat(1_000);
    let units = accepted(&world, text.as_bytes(), &[head.len()]).await;
    let preparer = world.preparer(&[]);
    let prepared = preparer.prepare(units[0], None, NOW).await.unwrap();
    let all = preparer.converted.available_permits();
    let convert = || preparer.seven_bit(units[0].id, prepared.clone(), NOW);
    let converted = convert().await.unwrap();
    let left = preparer.converted.available_permits();
    assert!(converted.body.len() <= (all - left) * 1_024, "{all} {left}");

    let others = preparer.converted.clone().acquire_many_owned(left as u32).await;
    let begun = tokio::time::Instant::now();
    assert!(matches!(convert().await, Err(PrepareError::Crowded)));
    assert!(begun.elapsed() >= crate::prepare::ROOM_PATIENCE);
    // The first one has been sent.
    drop(converted);
    let converted = convert().await.unwrap();
    drop((converted, others));
    assert_eq!(preparer.converted.available_permits(), all);
    // A small one is in memory as a whole anyway.
    let small = message(&text);
    let unit = UnitKey {
        id: small.id,
        ..units[0]
    };
    let small = preparer.prepare(unit, Some(small), NOW).await.unwrap();
    assert!(
        preparer
            .seven_bit(unit.id, small, NOW)
            .await
            .unwrap()
            .room
            .is_none()
    );
}

#[tokio::test]
async fn threads_prepare_large_and_small_messages() {
    let world = World::new();
    let text = format!("{PLAIN}second\r\n");
    let large = accepted(&world, text.as_bytes(), &[PLAIN.len()]).await[0];
    let signer = Arc::new(dkim_signer::Signer::new([world.key.clone()]).unwrap());
    let preparer = Preparer::threaded(world.queue.clone(), signer.clone(), world.metrics.clone(), 1).unwrap();
    for _ in 0..3 {
        let prepared = preparer.prepare(large, None, NOW).await.unwrap();
        assert_eq!(read(&preparer, &prepared).await, text.as_bytes());
    }
    drop(preparer);
    while Arc::strong_count(&signer) > 1 {
        std::thread::yield_now();
    }
}

#[test]
fn a_message_of_more_than_a_chunk_does_not_stay_in_memory() {
    let budget = Arc::new(AtomicU64::new(u64::MAX));
    let mut text = "x".repeat(keys::CHUNK);
    assert!(Kept::within(&budget, message(&text)).is_some());
    text.push('x');
    assert!(Kept::within(&budget, message(&text)).is_none());
}
