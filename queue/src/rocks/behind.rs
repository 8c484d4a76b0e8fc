//! Going on behind what does not read.

use rocksdb::{ColumnFamily, DB, Direction, IteratorMode, ReadOptions};

use super::failed;
use crate::store::{Each, StoreError};

/// Octets of keys when they are reckoned with; what is longer is cut.
const WIDTH: usize = 48;

/// A family of a database.
pub(super) type Of<'a> = (&'a DB, &'a ColumnFamily);

/// Hands on what reads. Where it ends early: the key to go on from, and why.
pub(super) fn run(
    (db, family): Of<'_>,
    options: ReadOptions,
    from: &[u8],
    each: Each<'_>,
) -> Result<bool, (Vec<u8>, StoreError)> {
    let mut last = None;
    let mode = IteratorMode::From(from, Direction::Forward);
    for entry in db.iterator_cf_opt(family, options, mode) {
        let (key, value) = match entry {
            Ok(entry) => entry,
            Err(error) => {
                // The least key greater than the last one.
                let next = last.map_or_else(|| from.to_vec(), |last: Box<[u8]>| [&last[..], &[0]].concat());
                return Err((next, failed(error)));
            }
        };
        if !each(&key, &value) {
            return Ok(false);
        }
        last = Some(key);
    }
    Ok(true)
}

/// Whether an iterator can be put there.
pub(super) fn reads_at((db, family): Of<'_>, options: ReadOptions, from: &[u8]) -> bool {
    let mode = IteratorMode::From(from, Direction::Forward);
    let first = db.iterator_cf_opt(family, options, mode).next();
    !matches!(first, Some(Err(_)))
}

/// The first key behind `from`, where nothing reads, at which it does again, or `to`, which `options` have as their upper bound. Keys are gone
/// through as the numbers they are, in steps twice as long each time, and then back by halves: some hundred looks.
pub(super) fn reads_again(of: Of<'_>, options: &dyn Fn() -> ReadOptions, from: &[u8], to: &[u8]) -> Vec<u8> {
    let (mut bad, end) = (number(from), number(to));
    let mut good = end;
    for bit in 0..8 * WIDTH {
        let Some(next) = plus(&bad, bit).filter(|next| *next < end) else {
            break;
        };
        if reads_at(of, options(), &next) {
            good = next;
            break;
        }
        bad = next;
    }
    loop {
        let middle = between(&bad, &good);
        if middle == bad {
            break;
        }
        if reads_at(of, options(), &middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    if good == end { to.to_vec() } else { good.to_vec() }
}

/// A key as a number of [`WIDTH`] octets.
fn number(key: &[u8]) -> [u8; WIDTH] {
    let mut number = [0; WIDTH];
    let length = key.len().min(WIDTH);
    number[..length].copy_from_slice(&key[..length]);
    number
}

/// Two to the `bit` more, if that is still a number.
fn plus(number: &[u8; WIDTH], bit: usize) -> Option<[u8; WIDTH]> {
    let mut sum = *number;
    let mut carry = 1u16 << (bit % 8);
    for octet in sum[..WIDTH - bit / 8].iter_mut().rev() {
        carry += u16::from(*octet);
        *octet = carry as u8;
        carry >>= 8;
        if carry == 0 {
            return Some(sum);
        }
    }
    None
}

/// Half-way, rounded down.
fn between(low: &[u8; WIDTH], high: &[u8; WIDTH]) -> [u8; WIDTH] {
    let mut sum = [0u8; WIDTH];
    let mut carry = 0u16;
    for at in (0..WIDTH).rev() {
        carry += u16::from(low[at]) + u16::from(high[at]);
        sum[at] = carry as u8;
        carry >>= 8;
    }
    for octet in &mut sum {
        let bits = (carry << 8) | u16::from(*octet);
        *octet = (bits >> 1) as u8;
        carry = bits & 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_reckoned_with_as_numbers() {
        assert_eq!(plus(&number(&[1, 255]), 8 * (WIDTH - 2)), Some(number(&[2])));
        assert_eq!(plus(&number(&[255]), 8 * (WIDTH - 1)), None);
        assert_eq!(between(&number(&[1]), &number(&[2])), number(&[1, 128]));
        assert_eq!(between(&number(&[255]), &[255; WIDTH])[0], 255);
        let one_apart = (number(&[]), plus(&number(&[]), 0).unwrap());
        assert_eq!(between(&one_apart.0, &one_apart.1), one_apart.0);
    }
}
