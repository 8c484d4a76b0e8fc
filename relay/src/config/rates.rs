//! Rates: how much of something is taken in a time.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use super::section::Section;

/// So many in a period, evenly spread, and some of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many in [`Rate::period`].
    pub count: NonZeroU32,
    /// A second, a minute, an hour or a day.
    pub period: Duration,
    /// How many at once after a time of rest.
    pub burst: NonZeroU32,
}

/// What one tenant may hand over. `None`: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantRates {
    /// Messages of all its clients.
    pub messages: Option<Rate>,
    /// Recipients of all its clients.
    pub recipients: Option<Rate>,
    /// Messages of each of its credentials.
    pub credential_messages: Option<Rate>,
    /// Recipients of each of its credentials.
    pub credential_recipients: Option<Rate>,
}

/// What one client address may do (of IPv6, one /64). `None`: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressRates {
    /// New connections.
    pub connections: Option<Rate>,
    /// Messages.
    pub messages: Option<Rate>,
}

pub(super) fn tenant(mut section: Section<'_>) -> TenantRates {
    let rates = TenantRates {
        messages: rate(&mut section, "messages"),
        recipients: rate(&mut section, "recipients"),
        credential_messages: rate(&mut section, "credential_messages"),
        credential_recipients: rate(&mut section, "credential_recipients"),
    };
    section.end();
    rates
}

pub(super) fn address(mut section: Section<'_>) -> AddressRates {
    let rates = AddressRates {
        connections: rate(&mut section, "address_connections"),
        messages: rate(&mut section, "address_messages"),
    };
    section.end();
    rates
}

/// Reports to one sender domain: more than a list full of dead addresses makes in a while, less than a flood.
pub(super) fn reports(section: &mut Section<'_>) -> Rate {
    let usual = Rate {
        count: NonZeroU32::MIN.saturating_add(4_999),
        period: Duration::from_secs(3_600),
        burst: NonZeroU32::MIN.saturating_add(999),
    };
    let rate = rate(section, "reports_per_domain");
    section.taken_as("reports_per_domain", "5000/hour burst 1000");
    rate.unwrap_or(usual)
}

fn rate(section: &mut Section<'_>, key: &'static str) -> Option<Rate> {
    section.parsed::<Rate>(key).map(|spot| spot.value)
}

/// The text is no [`Rate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no rate; write such as \"10/second\", \"600/minute\", \"5000/hour burst 100\", \"20000/day\"")]
pub struct BadRate;

impl FromStr for Rate {
    type Err = BadRate;

    /// `COUNT/UNIT`, or `COUNT/UNIT burst COUNT`. A burst that is not given is a tenth of the count, and at least 1.
    fn from_str(text: &str) -> Result<Self, BadRate> {
        let (rate, burst) = match text.split_once(" burst ") {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let (count, unit) = rate.split_once('/').ok_or(BadRate)?;
        let count: NonZeroU32 = count.parse().map_err(|_| BadRate)?;
        let seconds = match unit {
            "second" => 1,
            "minute" => 60,
            "hour" => 3_600,
            "day" => 86_400,
            _ => return Err(BadRate),
        };
        let burst = match burst {
            Some(burst) => burst.parse().map_err(|_| BadRate)?,
            None => NonZeroU32::new(count.get() / 10).unwrap_or(NonZeroU32::MIN),
        };
        Ok(Self {
            count,
            period: Duration::from_secs(seconds),
            burst,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        let read = |text: &str| {
            text.parse::<Rate>()
                .map(|rate| (rate.count.get(), rate.period.as_secs(), rate.burst.get()))
        };
        assert_eq!(read("600/minute"), Ok((600, 60, 60)));
        assert_eq!(read("5/second"), Ok((5, 1, 1)));
        assert_eq!(read("5000/hour burst 7"), Ok((5_000, 3_600, 7)));
        assert_eq!(read("1/day"), Ok((1, 86_400, 1)));
        for wrong in [
            "",
            "600",
            "0/minute",
            "600/min",
            "/minute",
            "-1/minute",
            "600/minute burst",
            "600/minute burst 0",
            "600 / minute",
            "99999999999/day",
        ] {
            assert_eq!(read(wrong), Err(BadRate), "{wrong}");
        }
    }
}
