//! An operator who suspends, resumes, retries and deletes at random.

use std::rc::Rc;
use std::time::Duration;

use admin_api::operate::{Delete, Deletion, Progress, Resume, Retry, Selector, Suspend};
use admin_api::{Caller, Control as _, ControlError, Time};
use relay::control::QueueControl;
use relay::world::{Clock, Random};
use tokio::time::{Instant, sleep};

use super::MINUTE;
use super::world::{DOMAINS, World};

/// What is on the wire when a suspension begins may take so long.
const FINISHES: Duration = Duration::from_secs(15 * 60);

/// What was suspended, and when.
#[derive(Clone, Debug)]
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
    pub world: Rc<World>,
}

fn me() -> Caller {
    Caller("uid 0".into())
}

impl Operator {
    /// Waits, then does something. Nothing of it can be done where the disk fails.
    pub async fn act(&self) {
        sleep(Duration::from_secs(self.random.below(1_200) as u64)).await;
        let done = match self.random.below(10) {
            0..=2 => self.suspend().await,
            3..=4 => self.resume().await,
            5..=7 => self.retry().await,
            _ => self.delete().await,
        };
        if let Err(error) = done {
            let text = format!("operator: {error:?}");
            match self.world.is_failing() {
                true => self.world.note(text),
                false => self.world.wrong(text),
            }
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

    /// Of messages: a third by what no index knows.
    fn mail(&self) -> Selector {
        let mut mail = self.selector();
        match self.random.below(12) {
            0 => mail.sender = Some("@back.test".into()),
            1 => mail.sender = Some("<>".into()),
            2 => mail.older_than_seconds = Some(1 + self.random.below(3_600) as u64),
            3 => {
                let domain = mail.domain.as_deref().unwrap_or(DOMAINS[0]);
                mail.recipient = Some(format!("r{}x0@{domain}", self.random.below(20)));
            }
            _ => return mail,
        }
        mail.all = false;
        mail
    }

    async fn suspend(&self) -> Result<(), ControlError> {
        let selector = self.selector();
        let span = (self.random.below(2) == 0).then(|| MINUTE * (1 + self.random.below(90) as u32));
        let (from, now) = (Instant::now(), self.clock.now());
        let suspend = Suspend {
            selector: selector.clone(),
            until: span.map(|span| Time(now + span)),
            for_seconds: None,
            reason: "chance".into(),
        };
        self.world
            .note(format!("operator: suspend {} for {span:?}", name(&selector)));
        self.ends(&selector, from);
        self.control.suspend(suspend, me()).await?;
        self.world.suspensions.borrow_mut().push(Suspended {
            selector,
            from: Instant::now(),
            until: span.map(|span| from + span),
            resumed: None,
        });
        Ok(())
    }

    async fn resume(&self) -> Result<(), ControlError> {
        let all = self.control.suspensions().await?.suspensions;
        match all.get(self.random.below(all.len())) {
            Some(one) => self.resume_one(&one.selector).await,
            None => Ok(()),
        }
    }

    pub async fn resume_all(&self) -> Result<(), ControlError> {
        for one in self.control.suspensions().await?.suspensions {
            self.resume_one(&one.selector).await?;
        }
        Ok(())
    }

    async fn resume_one(&self, selector: &Selector) -> Result<(), ControlError> {
        self.world.note(format!("operator: resume {}", name(selector)));
        self.ends(selector, Instant::now());
        let resume = Resume {
            selector: selector.clone(),
        };
        self.control.resume(resume, me()).await
    }

    /// A suspension of this selector is over, or another takes its place.
    fn ends(&self, selector: &Selector, now: Instant) {
        for suspended in self.world.suspensions.borrow_mut().iter_mut() {
            if suspended.selector == *selector && suspended.resumed.is_none() {
                suspended.resumed = Some(now);
            }
        }
    }

    async fn retry(&self) -> Result<(), ControlError> {
        let mut retry = Retry {
            selector: self.mail(),
            after: None,
        };
        self.world
            .note(format!("operator: retry {}", name(&retry.selector)));
        loop {
            let progress = self.control.retry(retry.clone(), me()).await?;
            self.proper(&progress);
            retry.after = progress.next;
            if retry.after.is_none() {
                return Ok(());
            }
        }
    }

    async fn delete(&self) -> Result<(), ControlError> {
        let mut delete = Delete {
            selector: Selector {
                all: false,
                tenant: Some(format!("t{}", self.random.below(3))),
                ..self.mail()
            },
            tell: (self.random.below(3) == 0).then(|| "chance".to_owned()),
            token: None,
            after: None,
        };
        self.world
            .note(format!("operator: delete {}", name(&delete.selector)));
        loop {
            match self.control.delete(delete.clone(), me()).await? {
                Deletion::Preview(preview) => {
                    assert!(delete.token.is_none());
                    delete.token = preview.token;
                    delete.after = preview.next;
                }
                Deletion::Progress(progress) => {
                    self.proper(&progress);
                    delete.after = progress.next;
                    if delete.after.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn proper(&self, progress: &Progress) {
        if progress.failed > 0 && !self.world.is_failing() {
            self.world.wrong(format!("an order failed: {progress:?}"));
        }
    }
}

fn name(selector: &Selector) -> String {
    let Selector { tenant, domain, .. } = selector;
    let part = |name: &Option<String>| name.clone().unwrap_or_else(|| "*".to_owned());
    let age = selector
        .older_than_seconds
        .map(|age| format!("older than {age} s"));
    let scan = [&selector.sender, &selector.recipient, &age];
    let scan: String = scan
        .into_iter()
        .flatten()
        .map(|part| format!(", {part}"))
        .collect();
    format!("{} to {}{scan}", part(tenant), part(domain))
}
