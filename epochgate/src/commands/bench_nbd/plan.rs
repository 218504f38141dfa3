//! Runs everything: each repetition of each profile alternates all servers, in an order that is shuffled anew, so that
//! neither position nor neighbour favours one.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::sample::{self, Client, Sample, Setting};
use crate::bench::image::make_image;
use crate::bench::interrupt;
use crate::bench::output::styled;
use crate::bench::profile::Profile;
use crate::bench::server::{AsyncMode, Kind, Station};
use crate::load::{self, Content, Load, Order, Stop};

/// What is to be run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub clients: Vec<Client>,
    pub servers: Vec<Kind>,
    pub profiles: Vec<Profile>,
    pub connections: Vec<usize>,
    pub repeats: usize,
    pub length: Duration,
    pub size: u64,
    pub async_mode: AsyncMode,
    pub structured: bool,
    pub seed: u64,
}

/// All repetitions of one profile against one server.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub client: Client,
    pub profile: Profile,
    pub connections: usize,
    pub server: Kind,
    pub samples: Vec<Sample>,
}

impl Plan {
    /// The profiles with their connections, in the order of the tables. The native client comes first: it knows what is
    /// on the disks, until fio writes to them.
    fn blocks(&self) -> Vec<(Client, Profile, usize)> {
        let mut blocks = Vec::new();
        for client in &self.clients {
            for profile in &self.profiles {
                if *client == Client::Native && profile.native.is_none() {
                    continue;
                }
                for connections in &self.connections {
                    // The verify job has four connections, always.
                    if profile.fixed_connections() && Some(connections) != self.connections.first()
                    {
                        continue;
                    }
                    blocks.push((*client, *profile, *connections));
                }
            }
        }
        blocks
    }

    fn takes_part(kind: Kind, client: Client, profile: &Profile) -> bool {
        match kind {
            Kind::BareFile => client == Client::Fio,
            // What stores nothing has nothing to verify.
            Kind::NbdkitNull => !profile.fixed_connections(),
            _ => true,
        }
    }

    /// Starts the servers in `dir` and runs everything.
    pub(crate) fn run(&self, dir: &Path) -> anyhow::Result<Vec<Series>> {
        let bar = progress();
        let mut stations = Vec::new();
        for kind in &self.servers {
            interrupt::check()?;
            bar.set_message(format!("starting {kind}"));
            stations.push(self.station(*kind, dir)?);
        }
        let mut bench = Bench {
            plan: self,
            dir,
            stations,
            series: self.empty_series(),
            rng: StdRng::seed_from_u64(self.seed),
            bar,
        };
        bench
            .bar
            .set_length((bench.series.len() * self.repeats) as u64);
        for client in &self.clients {
            for repetition in 0..self.repeats {
                bench.repetition(*client, repetition)?;
            }
        }
        bench.bar.finish_and_clear();
        Ok(bench.series)
    }

    fn empty_series(&self) -> Vec<Series> {
        let mut series = Vec::new();
        for (client, profile, connections) in self.blocks() {
            for kind in &self.servers {
                if Self::takes_part(*kind, client, &profile) {
                    series.push(Series {
                        client,
                        profile,
                        connections,
                        server: *kind,
                        samples: Vec::new(),
                    });
                }
            }
        }
        series
    }

    fn station(&self, kind: Kind, dir: &Path) -> anyhow::Result<(Station, Content)> {
        let station = Station::start(kind, dir, self.size, self.async_mode, |image| {
            make_image(image, self.size)
        })
        .with_context(|| format!("{kind} did not start"))?;
        let mut content = Content::new(self.size);
        if kind.starts_empty()
            && let Some(target) = station.target()
        {
            let block = 256 << 10;
            let load = Load {
                block,
                depth: 4,
                read_percent: 0,
                order: Order::Sequential,
                stop: Stop::Requests(self.size / block as u64),
                ..Load::new(self.size)
            };
            load::run(target, &load, &mut content)?;
        }
        Ok((station, content))
    }
}

/// A plan that is being carried out.
#[derive(Debug)]
struct Bench<'a> {
    plan: &'a Plan,
    dir: &'a Path,
    stations: Vec<(Station, Content)>,
    series: Vec<Series>,
    rng: StdRng,
    bar: ProgressBar,
}

impl Bench<'_> {
    fn repetition(&mut self, client: Client, repetition: usize) -> anyhow::Result<()> {
        let blocks = self.plan.blocks();
        for (_, profile, connections) in blocks.iter().filter(|block| block.0 == client) {
            let mut order: Vec<usize> = (0..self.stations.len()).collect();
            order.shuffle(&mut self.rng);
            for at in order {
                let Some((station, content)) = self.stations.get_mut(at) else {
                    continue;
                };
                let kind = station.kind;
                let Some(series) = self.series.iter_mut().find(|series| {
                    (series.client, series.connections, series.server)
                        == (client, *connections, kind)
                        && series.profile.name == profile.name
                }) else {
                    continue;
                };
                interrupt::check()?;
                self.bar.set_message(format!(
                    "{} {} ×{connections} {kind}",
                    client.name(),
                    profile.name
                ));
                let setting = Setting {
                    client,
                    profile: *profile,
                    connections: *connections,
                    length: self.plan.length,
                    size: self.plan.size,
                    seed: self.plan.seed ^ ((repetition as u64 + 1) << 32),
                    structured: self.plan.structured,
                    scratch: self.dir,
                };
                series
                    .samples
                    .push(sample::take(&setting, station, content)?);
                self.bar.inc(1);
            }
        }
        Ok(())
    }
}

fn progress() -> ProgressBar {
    styled(ProgressBar::no_length())
}
