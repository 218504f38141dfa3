//! How a guest is protected in one part of the bench, and what it does meanwhile.

use crate::cli::database::{Output, Rhythm};
use crate::cli::overhead::{Gate, OverheadArgs, Workload};

/// One guest.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub interval_ms: u64,
    pub output: Output,
    pub rhythm: Rhythm,
    /// It is there for the comparison of gates, not for that of rates.
    pub compares_gates: bool,
    pub workloads: Vec<Workload>,
}

impl Workload {
    pub(super) fn on_network(self) -> bool {
        matches!(self, Self::RoundTrip | Self::Stream)
    }

    /// As in options and results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::RoundTrip => "round-trip",
            Self::Stream => "stream",
        }
    }

    /// What is counted.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "turns/s",
            Self::Memory => "pages/s",
            Self::Disk => "blocks/s",
            Self::RoundTrip => "answers/s",
            Self::Stream => "MB/s",
        }
    }
}

impl Case {
    pub(super) fn networked(&self) -> bool {
        self.workloads.iter().any(|workload| workload.on_network())
    }

    /// How it is protected, in short.
    pub(super) fn name(&self) -> String {
        let gate = match self.output {
            Output::Hold => "",
            Output::Pass => ", no gate",
        };
        match self.rhythm {
            Rhythm::Fixed => format!("every {} ms{gate}", self.interval_ms),
            Rhythm::Demand => format!("on demand{gate}"),
            Rhythm::Adaptive => format!("adaptive{gate}"),
        }
    }
}

/// All that was asked for: rates first, then gates.
pub(super) fn all(args: &OverheadArgs) -> Vec<Case> {
    let of_rates = args
        .rates
        .iter()
        .filter(|rate| **rate > 0)
        .map(|rate| Case {
            interval_ms: (1000 / u64::from(*rate)).max(1),
            output: Output::Hold,
            rhythm: Rhythm::Fixed,
            compares_gates: false,
            workloads: args.workloads.clone(),
        });
    let on_network: Vec<Workload> = args
        .workloads
        .iter()
        .copied()
        .filter(|workload| workload.on_network())
        .collect();
    let of_gates = args.gates.iter().map(|gate| {
        let (interval_ms, output, rhythm) = match gate {
            Gate::None => (25, Output::Pass, Rhythm::Fixed),
            Gate::Fixed25 => (25, Output::Hold, Rhythm::Fixed),
            Gate::Fixed5 => (5, Output::Hold, Rhythm::Fixed),
            Gate::Demand => (25, Output::Hold, Rhythm::Demand),
            Gate::Adaptive => (25, Output::Hold, Rhythm::Adaptive),
        };
        Case {
            interval_ms,
            output,
            rhythm,
            compares_gates: true,
            workloads: on_network.clone(),
        }
    });
    of_rates
        .chain(of_gates)
        .filter(|case| !case.workloads.is_empty())
        .collect()
}
