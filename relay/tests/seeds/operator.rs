//! An operator who suspends, resumes, retries and deletes at random.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use admin_api::operate::{Delete, Deletion, Progress, Resume, Retry, Selector, Suspend};
use admin_api::{Caller, Control as _, Time};
use relay::control::QueueControl;
use relay::world::{Clock, Random};
use tokio::time::{Instant, sleep};

use super::MINUTE;
use super::world::DOMAINS;

/// What is on the wire when a suspension begins may take so long.
const FINISHES: Duration = Duration::from_secs(15 * 60);

/// What was suspended, and when.
#[derive(Debug)]
pub struct Suspended {
    selector: Selector,
    from: Instant,
    until: Option<Instant>,
    resumed: Option<Instant>,
}

impl Suspended {
    /// Whether mail may not have been sent then.
    pub fn held(&self, tenant: &str, recipient: &str, at: Instant) -> bool {
        let tenant_is = self.selector.tenant.as_deref().is_none_or(|name| name == tenant);
        let domain_is = self
            .selector
            .domain
            .as_deref()
            .is_none_or(|name| recipient.ends_with(&format!("@{name}")));
        let over = self.until.into_iter().chain(self.resumed).min();
        tenant_is && domain_is && at > self.from + FINISHES && over.is_none_or(|over| at < over)
    }
}

pub struct Operator {
    pub control: QueueControl,
    pub random: Random,
    pub clock: Clock,
    pub suspensions: Rc<RefCell<Vec<Suspended>>>,
    pub seed: u64,
}

fn me() -> Caller {
    Caller("uid 0".into())
}

impl Operator {
    /// Waits, then does something.
    pub async fn act(&self) {
        sleep(Duration::from_secs(self.random.below(1_200) as u64)).await;
        match self.random.below(10) {
            0..=2 => self.suspend().await,
            3..=4 => self.resume().await,
            5..=7 => self.retry().await,
            _ => self.delete().await,
        }
    }

    fn selector(&self) -> Selector {
        let mut selector = Selector::default();
        let kind = self.random.below(8);
        if kind < 4 {
            selector.tenant = Some(format!("t{}", self.random.below(3)));
        }
        if (2..7).contains(&kind) {
            selector.domain = Some(DOMAINS[self.random.below(DOMAINS.len())].to_owned());
        }
        selector.all = kind == 7;
        selector
    }

    async fn suspend(&self) {
        let selector = self.selector();
        let span = (self.random.below(2) == 0).then(|| MINUTE * (1 + self.random.below(90) as u32));
        let (from, now) = (Instant::now(), self.clock.now());
        let suspend = Suspend {
            selector: selector.clone(),
            until: span.map(|span| Time(now + span)),
            reason: "chance".into(),
        };
        self.ends(&selector, from);
        self.control.suspend(suspend, me()).await.unwrap();
        self.suspensions.borrow_mut().push(Suspended {
            selector,
            from: Instant::now(),
            until: span.map(|span| from + span),
            resumed: None,
        });
    }

    async fn resume(&self) {
        let all = self.control.suspensions().await.unwrap().suspensions;
        if let Some(one) = all.get(self.random.below(all.len())) {
            self.resume_one(&one.selector).await;
        }
    }

    pub async fn resume_all(&self) {
        for one in self.control.suspensions().await.unwrap().suspensions {
            self.resume_one(&one.selector).await;
        }
    }

    async fn resume_one(&self, selector: &Selector) {
        self.ends(selector, Instant::now());
        let resume = Resume {
            selector: selector.clone(),
        };
        self.control.resume(resume, me()).await.unwrap();
    }

    /// A suspension of this selector is over, or another takes its place.
    fn ends(&self, selector: &Selector, now: Instant) {
        for suspended in self.suspensions.borrow_mut().iter_mut() {
            if suspended.selector == *selector && suspended.resumed.is_none() {
                suspended.resumed = Some(now);
            }
        }
    }

    async fn retry(&self) {
        let mut retry = Retry {
            selector: self.selector(),
            after: None,
        };
        loop {
            let progress = self.control.retry(retry.clone(), me()).await.unwrap();
            self.proper(&progress);
            retry.after = progress.next;
            if retry.after.is_none() {
                return;
            }
        }
    }

    async fn delete(&self) {
        let mut delete = Delete {
            selector: Selector {
                all: false,
                tenant: Some(format!("t{}", self.random.below(3))),
                ..self.selector()
            },
            tell: (self.random.below(3) == 0).then(|| "chance".to_owned()),
            token: None,
            after: None,
        };
        loop {
            match self.control.delete(delete.clone(), me()).await.unwrap() {
                Deletion::Preview(preview) => {
                    assert!(delete.token.is_none());
                    delete.token = Some(preview.token);
                }
                Deletion::Progress(progress) => {
                    self.proper(&progress);
                    delete.after = progress.next;
                    if delete.after.is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn proper(&self, progress: &Progress) {
        assert_eq!(progress.failed, 0, "seed {}", self.seed);
    }
}
