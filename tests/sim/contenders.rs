//! Who is compared, and the runs of each.

use outrigger::condition::Condition;
use outrigger::plan::rules::{BudgetRule, Methods, Rules, Share};

use crate::others::{Numbers, Other};
use crate::ours::Ours;
use crate::report::Record;
use crate::world::{Setting, World};

/// A product with its defaults, or with what its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Outrigger as it comes.
    Outrigger,
    /// Outrigger with [`LINE`] in each peer.
    OutriggerLine,
    /// As that, with a budget that allows everything.
    OutriggerUnbounded,
    /// Envoy as it comes.
    Envoy,
    /// Envoy with a retry policy and outlier detection at their default numbers.
    EnvoyOn,
    /// Istio as it comes.
    Istio,
    /// Linkerd as it comes.
    Linkerd,
    /// Dapr as it comes.
    Dapr,
}

/// What a user adds where answers of 502, 503, 504 and UNAVAILABLE are to be tried again.
pub(crate) const LINE: &str =
    "retry: { on: [connect-failure, reset-before-request, refused-stream, reset, gateway-error, unavailable] }";

impl Who {
    /// All that the tables compare.
    pub(crate) const ALL: [Self; 7] =
        [Self::Outrigger, Self::OutriggerLine, Self::Envoy, Self::EnvoyOn, Self::Istio, Self::Linkerd, Self::Dapr];

    /// The name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Outrigger => "Outrigger",
            Self::OutriggerLine => "Outrigger + line",
            Self::OutriggerUnbounded => "Outrigger + line, no budget",
            Self::Envoy => "Envoy",
            Self::EnvoyOn => "Envoy, switched on",
            Self::Istio => "Istio",
            Self::Linkerd => "Linkerd",
            Self::Dapr => "Dapr",
        }
    }

    /// One run.
    pub(crate) fn run(self, setting: Setting) -> Record {
        // Within it tokio's time stands still, so that whatever the product notes as its beginning is the same moment.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _frozen = runtime.enter();
        let other = |numbers: Numbers| World::run(setting, |hosts| Other::new(hosts, numbers, setting.grpc));
        let ours = |rules: Rules| World::run(setting, |hosts| Ours::new(hosts, &rules, setting.grpc));
        match self {
            Self::Outrigger => ours(Rules::default()),
            Self::OutriggerLine => ours(with_line(setting.grpc)),
            Self::OutriggerUnbounded => {
                let mut rules = with_line(setting.grpc);
                rules.retry.budget = BudgetRule { share: Share::percent(10_000), floor: u32::MAX };
                ours(rules)
            }
            Self::Envoy => other(Numbers::envoy()),
            Self::EnvoyOn => other(Numbers::envoy_on()),
            Self::Istio => other(Numbers::istio()),
            Self::Linkerd => other(Numbers::linkerd()),
            Self::Dapr => other(Numbers::dapr()),
        }
    }
}

/// [`LINE`]; gRPC needs `methods: any` beside it, being all POST.
fn with_line(grpc: bool) -> Rules {
    let mut rules = Rules::default();
    rules.retry.on = rules.retry.on.with(Condition::GatewayError).with(Condition::Unavailable);
    if grpc {
        rules.retry.methods = Methods::Any;
    }
    rules
}
