//! The table of `dynamo::detector`: false accusations and seconds to notice a death, over models and thresholds.
//!
//! Heartbeats every second, ±20% jitter, 10% of them lost; a look at the silence ten times a second. Each row stands
//! for a million seconds of one peer, then a thousand deaths. `cargo run --release --example detector_table`

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Suspicion after a silence, by the intervals seen.
type Model = fn(silence: f64, mean: f64, deviation: f64) -> f64;

fn exponential(silence: f64, mean: f64, _: f64) -> f64 {
    silence / (mean * std::f64::consts::LN_10)
}

/// By the logistic approximation of the normal distribution's tail.
fn normal(silence: f64, mean: f64, deviation: f64) -> f64 {
    let y = (silence - mean) / deviation.max(0.1);
    let e = (-y * (1.5976 + 0.070_566 * y * y)).exp();
    if silence > mean { -(e / (1.0 + e)).log10() } else { -(1.0 - 1.0 / (1.0 + e)).log10() }
}

/// The silence from which on the model accuses.
fn patience(model: Model, threshold: f64, mean: f64, deviation: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1000.0);
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if model(middle, mean, deviation) >= threshold { high = middle } else { low = middle }
    }
    high
}

fn main() {
    let rows: [(&str, Model, &[f64]); 2] = [
        ("exponential", exponential, &[2.0, 2.5, 3.0, 3.5, 3.8, 4.0, 4.5]),
        ("normal", normal, &[8.0, 12.0, 16.0]),
    ];
    for (name, model, thresholds) in rows {
        for threshold in thresholds {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
            // From one heartbeat that arrives to the next.
            let mut next = || {
                let mut gap: f64 = random.random_range(0.8..1.2);
                while random.random_bool(0.1) {
                    gap += random.random_range(0.8..1.2);
                }
                gap
            };
            let mut window: Vec<f64> = (0..100).map(|_| next()).collect();
            let (mut seconds, mut wrong, mut at) = (0.0, 0, 0);
            let mut noticed = Vec::new();
            while seconds < 1_000_000.0 {
                let mean = window.iter().sum::<f64>() / window.len() as f64;
                let variance =
                    window.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / window.len() as f64;
                let patience = patience(model, *threshold, mean, variance.sqrt());
                let gap = next();
                wrong += u32::from(gap > patience);
                if at % 1000 == 0 {
                    noticed.push(patience);
                }
                window[at % 100] = gap;
                (seconds, at) = (seconds + gap, at + 1);
            }
            noticed.sort_by(f64::total_cmp);
            let (median, most) = (noticed[noticed.len() / 2], noticed[noticed.len() - 1]);
            println!("//!   {name:<12} {threshold:>9.1}   {wrong:>17}   {median:>25.1}   {most:>4.1}");
        }
    }
}
