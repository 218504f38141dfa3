//! The metrics of a watch, in the text format of OpenMetrics.

use monitor::judge::Health;
use monitor::watch::{Now, Outcome};
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, String)>;
type Figure = Gauge<f64, std::sync::atomic::AtomicU64>;

/// The whole page.
pub(super) fn page(now: &Now) -> String {
    let mut registry = Registry::with_prefix("epochgate_monitor");
    let vm = || vec![("vm", now.vm.clone())];
    let with = |name, value: String| -> Labels { vec![("vm", now.vm.clone()), (name, value)] };

    let health = Family::<Labels, Gauge>::default();
    for of in [
        Health::Unknown,
        Health::Healthy,
        Health::Strange,
        Health::Faulty,
    ] {
        let is = i64::from(of == now.health);
        let labels = with("health", of.name().to_owned());
        health.get_or_create(&labels).set(is);
    }
    registry.register("health", "1 for how the VM is", health);

    let reachable = Family::<Labels, Gauge>::default();
    let is = i64::from(now.lost.is_none());
    reachable.get_or_create(&vm()).set(is);
    registry.register("reachable", "Whether the VM can be watched", reachable);

    if let Some(opinion) = &now.opinion {
        for (name, help, value) in [
            ("score", "How much speaks for a fault", opinion.score),
            (
                "alarm_score",
                "From which score on a window counts",
                opinion.threshold,
            ),
            (
                "confidence",
                "How much of what the model knows is measured",
                opinion.confidence,
            ),
        ] {
            let figure = Family::<Labels, Figure>::default();
            figure.get_or_create(&vm()).set(value);
            registry.register(name, help, figure);
        }
    }
    let windows = Family::<Labels, Counter>::default();
    windows.get_or_create(&vm()).inc_by(now.figures.windows);
    registry.register("windows", "Windows that were judged", windows);

    let verdicts = Family::<Labels, Counter>::default();
    for (health, count) in &now.figures.verdicts {
        let labels = with("health", health.clone());
        verdicts.get_or_create(&labels).inc_by(*count);
    }
    registry.register("verdicts", "Verdicts that were passed", verdicts);

    let actions = Family::<Labels, Counter>::default();
    for (action, outcomes) in &now.figures.actions {
        for outcome in Outcome::ALL {
            let mut labels = with("action", action.clone());
            labels.push(("outcome", outcome.name().to_owned()));
            let count = outcomes.get(&outcome).copied().unwrap_or(0);
            actions.get_or_create(&labels).inc_by(count);
        }
    }
    registry.register("actions", "What was done about verdicts", actions);

    let mut page = String::new();
    if text::encode(&mut page, &registry).is_err() {
        // Writing to a string fails only if a metric can't be written at all.
        tracing::error!("the metrics can't be written");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_how_the_vm_is() {
        let mut now = Now::new("vm1", 0);
        now.health = Health::Faulty;
        now.figures.verdicts.insert("faulty".to_owned(), 2);
        let page = page(&now);
        for line in [
            r#"epochgate_monitor_health{vm="vm1",health="faulty"} 1"#,
            r#"epochgate_monitor_health{vm="vm1",health="healthy"} 0"#,
            r#"epochgate_monitor_verdicts_total{vm="vm1",health="faulty"} 2"#,
            "# EOF",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }
}
