//! What is known of the mail systems of others: what their replies mean ([`classes`]), who runs a host and what they ask for
//! ([`providers`]). Two tables in `relay/shaping/` are compiled in; the configuration adds to them. docs/shaping.md tells all of it.

pub mod classes;
pub mod explain;
pub mod pattern;
pub mod providers;

use std::sync::{Arc, LazyLock};

use classes::{Class, ClassId, Classes};
use providers::{Provider, Providers};

pub use providers::{Advice, After, Reach};

/// The tables, with what the configuration adds.
#[derive(Clone, Debug)]
pub struct Shaping {
    /// What replies mean.
    pub classes: Classes,
    /// Who runs which hosts.
    pub providers: Providers,
}

impl Shaping {
    /// The tables as they are shipped.
    pub fn shipped() -> &'static Arc<Self> {
        static SHIPPED: LazyLock<Arc<Shaping>> = LazyLock::new(|| {
            // What is compiled in is read by a test too.
            let classes = Classes::read(CLASSES).expect("relay/shaping/classes.toml is right");
            let providers =
                providers::read(PROVIDERS, &classes).expect("relay/shaping/providers.toml is right");
            Arc::new(Shaping {
                classes,
                providers: Providers::new(providers),
            })
        });
        &SHIPPED
    }

    /// The class of what `host` said, or of what went wrong on the way to it in our words, as the journal keeps both. Of a
    /// recipient whose time was up it is the class of what was said last.
    pub fn class(&self, said: &str, host: Option<&str>) -> &Class {
        self.classes.get(self.class_id(said, host))
    }

    /// The place of that class.
    pub fn class_id(&self, said: &str, host: Option<&str>) -> ClassId {
        self.look_up(said, host).0
    }

    /// What a rule of the configuration, or the provider's table, says that such words ask for.
    pub fn advice(&self, said: &str, host: Option<&str>) -> Option<&Advice> {
        self.look_up(said, host).1
    }

    fn look_up(&self, said: &str, host: Option<&str>) -> (ClassId, Option<&Advice>) {
        let said = said.strip_prefix(EXPIRED_LAST).unwrap_or(said);
        let provider = host.and_then(|host| self.providers.of_host(host));
        self.classes.look_up(said, provider.map(|provider| &**provider))
    }

    /// The provider of this name.
    pub fn provider(&self, name: &str) -> Option<&Provider> {
        let mut all = self.providers.all().iter();
        all.find(|provider| *provider.name == *name).map(|found| &**found)
    }
}

/// Before what was said last, in the words of an expiry.
pub const EXPIRED_LAST: &str = "4.4.7 delivery time expired; last: ";

const CLASSES: &str = include_str!("../../shaping/classes.toml");
const PROVIDERS: &str = include_str!("../../shaping/providers.toml");
