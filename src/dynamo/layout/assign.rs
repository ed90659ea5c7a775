//! The assignment: which N members hold each partition. A pure, deterministic function of Q, N, the members
//! sorted by id, and the previous assignment.
//!
//! # The rules
//!
//! 1. A partition is on N distinct members, in min(N, Z) distinct zones of the Z zones that have members. With
//!    Z ≥ N that is at most one replica a zone; with Z < N every zone has at least one.
//! 2. A member's **share** is what it would hold if partitions could be cut: proportional to its capacity, at
//!    most Q (it holds a partition once), the zones of rule 1 permitting. Where a zone is too small or too
//!    large for its proportion it takes what rule 1 lets it take and the other zones settle the rest in
//!    proportion ([`shares`]). What a member may hold is its **band**:
//!    - where all capacities are equal, its share rounded down or up, nothing else, so that loads differ by at
//!      most one wherever zones leave that possible;
//!    - where they are not, anything within one partition or 5% of its share, whichever is more;
//!    - in a first layout, and wherever no replica can stay, again the share rounded down or up.
//! 3. Among the assignments that satisfy 1 and 2, one with the fewest moves from the previous assignment.
//! 4. Among those, where the band is wider than the rounded share, one that is most even: the least sum of
//!    load²/share, which is Webster's apportionment as far as replicas that move anyway can bring it about.
//!
//! Rules 1 and 2 can always be met together: holding share/Q of every partition satisfies them with fractions,
//! they are the bounds of a flow (partition → zone of the partition → member → total), and a flow problem with
//! whole bounds that has a fractional solution has a whole one.
//!
//! Loads do not drift: the band is around the share under the members of the day, not around earlier loads, and
//! every layout is inside it, however many changes went before.
//!
//! # The algorithm
//!
//! A minimum-cost flow, where a replica that stays costs 0 and one that moves costs 1, by successive shortest
//! paths (Garage computes its layouts by a flow of this shape too). It starts from the previous assignment, so
//! the work is in proportion to what must move:
//!
//! - *Keep and fill.* Each partition keeps the largest part of its previous replicas that rule 1 allows, and
//!   missing ones go to the relatively emptiest members. No assignment that satisfies rule 1 has fewer moves,
//!   so the flow is of least cost for the loads it has, and its residual graph has no negative cycle.
//! - *Even out.* While a member is outside its band, send one replica along the cheapest path of swaps from a
//!   member that must give to one that must take. A cheapest path makes no negative cycle, so when all loads are
//!   in bounds the flow is optimal: rule 3 holds exactly.
//! - *Level.* While there is a path that costs nothing, from a member that can give to one that can take, and the
//!   sum of rule 4 gets less by it, take the one by which it gets least. The loads of the assignments that
//!   satisfy rules 1 to 3 are an M-convex set (they are the ends of cheapest flows), on which a sum of convex
//!   functions that no exchange of one for one improves is least: rule 4 holds exactly (Murota, *Discrete Convex
//!   Analysis*, 2003, §6 and §9).
//!
//! The residual graph is kept small by looking only at members: the edge u → v weighs the least that any one
//! partition pays to give its replica on u to v, and `counts` says how many partitions can do it for −1, 0 or 1.
//! Two edges of a path might want the same partition for swaps that exclude each other. Then there is a shorter
//! path: if a → b and c → d both pass through partition p, so does a → d, and what is cut out is a cycle,
//! which costs nothing or more. Hence the cheapest path with the fewest edges never does that, and the search
//! orders by (cost, edges).
//!
//! Cost for V members: Q·N·V to count, then V² times a few for each path; paths are about as many as the
//! replicas that move for the sake of balance. 100 members and 4,096 partitions take under 25 ms on one shared core
//! (`cargo bench --bench core`); the search is not meant for more than [`MEMBERS_MAX`](super::MEMBERS_MAX) members.
//!
//! # What it does not do
//!
//! - It does not trade moves for balance. Among unequal capacities a new member gets its share less the slack of the
//!   band, when that saves moves: one with a share of 100 partitions holds 95, one with a share of 1 may hold none.
//! - It looks at one previous assignment only, not at older layouts whose transfers are not complete.
//! - It does not minimise how much data moves *between zones*, or balance who sends.
//! - A partition counts as one, whatever its size: hashing makes sizes alike, hot keys do not.
//! - The sets of members that share a partition are scattered by a fixed mix, not optimised (no copysets).

use super::Member;

/// How many replicas of one partition a zone may hold: rule 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ZoneRule {
    least: u32,
    most: u32,
}

impl ZoneRule {
    fn new(replicas: u32, zones: u32) -> ZoneRule {
        if zones >= replicas {
            ZoneRule { least: u32::from(zones == replicas), most: 1 }
        } else {
            ZoneRule { least: 1, most: replicas - (zones - 1) }
        }
    }
}

/// The fewest and the most partitions that a member may hold: rule 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Band {
    least: u32,
    most: u32,
}

/// A member's share, in the forms that rules 2 and 4 ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    /// Rounded down and up.
    rounded: Band,
    /// One partition or 1/[`SLACK_PART`] of the share to either side, whichever is more, at most Q.
    wide: Band,
    /// The share in 1/65536 of a partition, at least 1; only to rank members.
    scaled: u64,
}

/// Which part of its share a member may be off among unequal capacities: 5%.
const SLACK_PART: u128 = 20;

/// A water level: partitions per unit of capacity, as a fraction.
#[derive(Debug, Clone, Copy)]
struct Level {
    num: u128,
    den: u128,
}

impl Level {
    /// self ≤ other
    fn at_most(self, other: Level) -> bool {
        self.num * other.den <= other.num * self.den
    }

    /// Whether a member of this capacity would hold every partition.
    fn fills(self, capacity: u32, q: u32) -> bool {
        self.num * u128::from(capacity) >= u128::from(q) * self.den
    }

    fn share(self, capacity: u32, q: u32) -> Share {
        let (num, den) = if self.fills(capacity, q) {
            (u128::from(q), 1)
        } else {
            (self.num * u128::from(capacity), self.den)
        };
        let narrow = |x: u128| u32::try_from(x).expect("a share is at most Q");
        let rounded = Band { least: narrow(num / den), most: narrow(num.div_ceil(den)) };
        // Of the two ways to be off, the one that is more reaches further down, and further up.
        let one = (num.saturating_sub(den).div_ceil(den), (num + den) / den);
        let part = SLACK_PART * den;
        let slack = ((num * (SLACK_PART - 1)).div_ceil(part), num * (SLACK_PART + 1) / part);
        let wide = Band { least: narrow(one.0.min(slack.0)), most: narrow(one.1.max(slack.1)).min(q) };
        // So whatever can be met by rounded shares can be met inside the wide band.
        assert!(wide.least <= rounded.least, "the wide band reaches lower");
        assert!(wide.most >= rounded.most, "the wide band reaches higher");
        Share {
            rounded,
            wide,
            scaled: u64::try_from((num << 16) / den).expect("a share is at most Q").max(1),
        }
    }
}

/// The level at which members of these capacities (sorted, largest first) hold `total` together.
fn level_for(total: u128, capacities: &[u32], q: u32) -> Level {
    let mut rest = total;
    let mut capacity: u128 = capacities.iter().map(|&c| u128::from(c)).sum();
    for &largest in capacities {
        let level = Level { num: rest, den: capacity };
        if !level.fills(largest, q) {
            return level;
        }
        // The largest of those left is full; the others share what it leaves.
        rest = rest.checked_sub(u128::from(q)).expect("a full member holds Q of the rest");
        capacity -= u128::from(largest);
    }
    assert_eq!(rest, 0, "a zone is never asked for more than its members can hold");
    let smallest = capacities.last().expect("a zone has members");
    Level { num: u128::from(q), den: u128::from(*smallest) }
}

/// The share of each member: the one water level at which all zones together hold N·Q, where a zone that
/// would be below or above what rule 1 allows gets a level of its own. Exact, in fractions.
fn shares(q: u32, replicas: u32, members: &[Member]) -> Vec<Share> {
    let (zone_of, zones) = zones(members);
    let rule = ZoneRule::new(replicas, u32::try_from(zones).expect("zones are at most the members"));
    let wanted = u128::from(q) * u128::from(replicas);

    struct Zone {
        capacities: Vec<u32>,
        least: u128,
        most: u128,
        low: Level,
        high: Level,
    }
    let zones: Vec<Zone> = (0..zones)
        .map(|zone| {
            let mut capacities: Vec<u32> =
                members.iter().zip(&zone_of).filter(|(_, z)| **z == zone).map(|(m, _)| m.capacity).collect();
            capacities.sort_unstable_by(|a, b| b.cmp(a));
            let least = u128::from(q) * u128::from(rule.least);
            let most = u128::from(q) * u128::from(rule.most).min(capacities.len() as u128);
            let low = level_for(least, &capacities, q);
            let high = level_for(most, &capacities, q);
            Zone { capacities, least, most, low, high }
        })
        .collect();

    // What all hold just above `level` is base + level × slope: the total is linear between two breakpoints.
    let line = |level: Level| -> (u128, u128) {
        let (mut base, mut slope) = (0, 0);
        for zone in &zones {
            if zone.high.at_most(level) {
                base += zone.most;
            } else if !zone.low.at_most(level) {
                base += zone.least;
            } else {
                for &capacity in &zone.capacities {
                    if level.fills(capacity, q) {
                        base += u128::from(q);
                    } else {
                        slope += u128::from(capacity);
                    }
                }
            }
        }
        (base, slope)
    };

    let mut breaks = vec![Level { num: 0, den: 1 }];
    for zone in &zones {
        breaks.extend([zone.low, zone.high]);
        breaks.extend(zone.capacities.iter().map(|&c| Level { num: u128::from(q), den: u128::from(c) }));
    }
    breaks.sort_by(|a, b| (a.num * b.den).cmp(&(b.num * a.den)));
    // The last breakpoint at which all hold no more than is wanted; the level is between it and the next.
    let below = breaks.partition_point(|&level| {
        let (base, slope) = line(level);
        base * level.den + slope * level.num <= wanted * level.den
    });
    let mut level =
        breaks[below.checked_sub(1).expect("at level 0 zones hold their least, which is not too much")];
    let (base, slope) = line(level);
    if slope > 0 {
        level = Level { num: wanted - base, den: slope };
    } else {
        assert_eq!(base, wanted, "above the last breakpoint every zone is at its most");
    }

    members
        .iter()
        .zip(&zone_of)
        .map(|(member, &zone)| {
            let zone = &zones[zone];
            let level = if !zone.low.at_most(level) {
                zone.low
            } else if zone.high.at_most(level) {
                zone.high
            } else {
                level
            };
            level.share(member.capacity, q)
        })
        .collect()
}

/// The zone of each member as an index into the sorted zone names, and how many zones there are.
fn zones(members: &[Member]) -> (Vec<usize>, usize) {
    let mut names: Vec<&str> = members.iter().map(|m| m.zone.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let zone_of = members
        .iter()
        .map(|m| names.binary_search(&m.zone.as_str()).expect("every name is listed"))
        .collect();
    (zone_of, names.len())
}

/// Assigns partitions to members. `members` are sorted by id, valid, and at least `replicas` many.
/// `previous[p]` lists the members (by index) that held partition `p`, empty where there was no layout.
/// Returns the members of each partition by index, ascending.
pub(super) fn assign(q: u32, replicas: u32, members: &[Member], previous: &[Vec<u16>]) -> Vec<Vec<u16>> {
    assert_eq!(previous.len(), q as usize);
    assert!(members.len() >= replicas as usize);
    let shares = shares(q, replicas, members);
    // Where no replica can stay all assignments move as many, and a wider band would buy nothing.
    let rounded =
        members.iter().all(|m| m.capacity == members[0].capacity) || previous.iter().all(Vec::is_empty);
    let bands = shares.iter().map(|share| if rounded { share.rounded } else { share.wide }).collect();
    let mut flow = Flow::new(q, replicas, members, &shares, bands, previous);
    flow.keep();
    flow.fill();
    flow.even_out();
    if !rounded {
        flow.level();
    }
    let mut owners = flow.owners;
    for list in &mut owners {
        list.sort_unstable();
    }
    owners
}

/// The flow under construction. Members and zones are indices; vertex `members` stands for the total, to which
/// every member sends what it holds.
struct Flow<'a> {
    replicas: usize,
    members: usize,
    shares: &'a [Share],
    bands: Vec<Band>,
    zone_of: Vec<usize>,
    rule: ZoneRule,
    previous: &'a [Vec<u16>],
    /// The members that hold each partition, in no order.
    owners: Vec<Vec<u16>>,
    load: Vec<u32>,
    /// `[u × members + v][c + 1]`: partitions that can give their replica on u to v at cost c.
    counts: Vec<[u32; 3]>,
    /// Replicas of the partition in hand per zone.
    in_zone: Vec<u32>,
}

/// A cost, the rank of the start (less is better), and a number of edges, compared in this order.
type Distance = (i32, u64, u32);
const UNREACHED: Distance = (i32::MAX, u64::MAX, u32::MAX);

/// The cheapest paths to every vertex, as a forest.
struct Paths {
    distance: Vec<Distance>,
    parent: Vec<usize>,
}

impl Paths {
    /// The vertices from the start to `target`, which is reached.
    fn to(&self, target: usize) -> Vec<usize> {
        let mut path = vec![target];
        while let Some(&v) = path.last().filter(|&&v| self.parent[v] != usize::MAX) {
            path.push(self.parent[v]);
            assert!(path.len() <= self.parent.len(), "parents form a forest");
        }
        path.reverse();
        path
    }
}

impl<'a> Flow<'a> {
    fn new(
        q: u32,
        replicas: u32,
        members: &[Member],
        shares: &'a [Share],
        bands: Vec<Band>,
        previous: &'a [Vec<u16>],
    ) -> Flow<'a> {
        let (zone_of, zones) = zones(members);
        Flow {
            replicas: replicas as usize,
            members: members.len(),
            shares,
            bands,
            zone_of,
            rule: ZoneRule::new(replicas, u32::try_from(zones).expect("zones are at most the members")),
            previous,
            owners: vec![Vec::with_capacity(replicas as usize); q as usize],
            load: vec![0; members.len()],
            counts: Vec::new(),
            in_zone: vec![0; zones],
        }
    }

    /// Partitions in a scattered order, so that what moves is not one stretch of the ring. A bijection of
    /// 0..Q because Q is a power of two and the factor is odd.
    fn scattered(&self, salt: usize) -> impl Iterator<Item = usize> + use<> {
        let mask = self.owners.len() - 1;
        (0..=mask)
            .map(move |i| (i.wrapping_mul(0x9E37_79B1).wrapping_add(salt.wrapping_mul(0x85EB_CA6B))) & mask)
    }

    /// Whether `a` is fuller than `b` for its share. Half a partition is added to what each holds (as Webster's
    /// method of apportionment does), so that a member whose share is nearly nothing does not come first.
    fn fuller(&self, a: u16, b: u16) -> bool {
        let (a, b) = (usize::from(a), usize::from(b));
        let halves = |v: usize| 2 * u64::from(self.load[v]) + 1;
        halves(a) * self.shares[b].scaled > halves(b) * self.shares[a].scaled
    }

    fn count_zones(&mut self, partition: usize) {
        self.in_zone.fill(0);
        for &v in &self.owners[partition] {
            self.in_zone[self.zone_of[usize::from(v)]] += 1;
        }
    }

    /// Gives every partition its previous members back, less the fewest that rule 1 forbids.
    fn keep(&mut self) {
        for (partition, previous) in self.previous.iter().enumerate() {
            assert!(previous.len() <= self.replicas);
            self.owners[partition].extend_from_slice(previous);
            for &v in previous {
                self.load[usize::from(v)] += 1;
            }
        }
        for partition in self.scattered(0) {
            loop {
                self.count_zones(partition);
                let missing: u32 =
                    self.in_zone.iter().map(|&held| self.rule.least.saturating_sub(held)).sum();
                let crowded = self.owners[partition].len() + missing as usize > self.replicas;
                // Which of them goes does not change how many go; the fullest saves a swap later.
                let mut drop: Option<u16> = None;
                for &v in &self.owners[partition] {
                    let held = self.in_zone[self.zone_of[usize::from(v)]];
                    let may_go = held > self.rule.most || (crowded && held > self.rule.least);
                    if may_go && drop.is_none_or(|d| self.fuller(v, d)) {
                        drop = Some(v);
                    }
                }
                let Some(drop) = drop else { break };
                self.owners[partition].retain(|&v| v != drop);
                self.load[usize::from(drop)] -= 1;
            }
        }
    }

    /// Brings every partition to N members, by rule 1, on the relatively emptiest.
    fn fill(&mut self) {
        for partition in self.scattered(0) {
            while self.owners[partition].len() < self.replicas {
                self.count_zones(partition);
                let missing: u32 =
                    self.in_zone.iter().map(|&held| self.rule.least.saturating_sub(held)).sum();
                let must_spread = self.owners[partition].len() + missing as usize >= self.replicas;
                let mut best: Option<(u16, u64)> = None;
                for v in 0..self.members {
                    let held = self.in_zone[self.zone_of[v]];
                    if held >= self.rule.most || (must_spread && held >= self.rule.least) {
                        continue;
                    }
                    let index = index(v);
                    if self.owners[partition].contains(&index) {
                        continue;
                    }
                    let tie = mix(partition as u64, v as u64);
                    let better = best.is_none_or(|(b, b_tie)| {
                        self.fuller(b, index) || (!self.fuller(index, b) && tie < b_tie)
                    });
                    if better {
                        best = Some((index, tie));
                    }
                }
                let (v, _) = best.expect("zones can hold N replicas, since there are N members");
                self.owners[partition].push(v);
                self.load[usize::from(v)] += 1;
            }
        }
    }

    /// 0 when the member held the partition before, else 1.
    fn cost(&self, partition: usize, v: usize) -> i32 {
        i32::from(!self.previous[partition].contains(&index(v)))
    }

    /// Whether rule 1 lets the partition, whose zones are counted, give a replica in zone `from` to zone `to`.
    fn zones_allow(&self, from: usize, to: usize) -> bool {
        from == to || (self.in_zone[from] > self.rule.least && self.in_zone[to] < self.rule.most)
    }

    /// Adds the swaps that a partition can make to `counts`, or takes them off.
    fn count_swaps(&mut self, partition: usize, add: bool) {
        self.count_zones(partition);
        for slot in 0..self.replicas {
            let u = usize::from(self.owners[partition][slot]);
            let gain = self.cost(partition, u);
            for v in 0..self.members {
                if !self.zones_allow(self.zone_of[u], self.zone_of[v])
                    || self.owners[partition].contains(&index(v))
                {
                    continue;
                }
                let weight = usize::try_from(self.cost(partition, v) - gain + 1).expect("costs are 0 and 1");
                let count = &mut self.counts[u * self.members + v][weight];
                *count = if add { *count + 1 } else { *count - 1 };
            }
        }
    }

    /// The least that any partition pays to give its replica on `u` to `v`.
    fn weight(&self, u: usize, v: usize) -> Option<i32> {
        let [gains, free, pays] = self.counts[u * self.members + v];
        if gains > 0 {
            Some(-1)
        } else if free > 0 {
            Some(0)
        } else if pays > 0 {
            Some(1)
        } else {
            None
        }
    }

    /// Counts all swaps, once.
    fn count_all_swaps(&mut self) {
        if self.counts.is_empty() {
            self.counts = vec![[0; 3]; self.members * self.members];
            for partition in 0..self.owners.len() {
                self.count_swaps(partition, true);
            }
        }
    }

    /// Brings every load into its band along cheapest paths.
    fn even_out(&mut self) {
        let over = |flow: &Flow<'_>| -> u32 {
            flow.load.iter().zip(&flow.bands).map(|(&load, band)| load.saturating_sub(band.most)).sum()
        };
        let under = |flow: &Flow<'_>| -> u32 {
            flow.load.iter().zip(&flow.bands).map(|(&load, band)| band.least.saturating_sub(load)).sum()
        };
        loop {
            let (before_over, before_under) = (over(self), under(self));
            if before_over == 0 && before_under == 0 {
                return;
            }
            self.count_all_swaps();
            let path = self.cheapest_path(before_over, before_under);
            self.send_along(&path);
            assert!(
                over(self) + under(self) < before_over + before_under,
                "a path takes from one member above its band or gives to one below"
            );
        }
    }

    /// The cheapest path, of those with the fewest edges, from a member above its band to one below. The
    /// total stands in for either where one side is spent: it takes from and gives to members inside.
    fn cheapest_path(&self, over: u32, under: u32) -> Vec<usize> {
        let total = self.members;
        let starts = (0..=total)
            .filter(|&v| if v == total { under > over } else { self.load[v] > self.bands[v].most })
            .map(|v| (v, 0));
        let paths = self.cheapest_paths(starts, true);
        let target = (0..=total)
            .filter(|&v| if v == total { over > under } else { self.load[v] < self.bands[v].least })
            .min_by_key(|&v| (paths.distance[v], v))
            .expect("loads out of bounds on one side have a counterpart");
        assert!(paths.distance[target] != UNREACHED, "rules 1 and 2 can always be met together");
        paths.to(target)
    }

    /// Makes loads as even as replicas that move anyway can make them. All loads are in their bands and stay there.
    fn level(&mut self) {
        self.count_all_swaps();
        // Each step brings the loads nearer to the most even ones, from which they are at most Q·N exchanges away.
        // Were there more, the layout would still keep rules 1 to 3.
        for _ in 0..self.owners.len() * self.replicas {
            let Some(path) = self.levelling_path() else { return };
            self.send_along(&path);
        }
    }

    /// What the member's next replica after `held` adds to the sum of rule 4: (held + 1)²/share − held²/share, in a
    /// fixed unit. Grows with `held`, so that the sum is convex whatever the rounding.
    fn crowding(&self, v: usize, held: u32) -> u64 {
        ((2 * u64::from(held) + 1) << 40) / self.shares[v].scaled
    }

    /// Of the paths that cost nothing and lead from a member above the least of its band to one below the most of
    /// its own, the one that most reduces the sum of rule 4; none if no such path reduces it.
    fn levelling_path(&self) -> Option<Vec<usize>> {
        let relief = |v: usize| self.crowding(v, self.load[v] - 1);
        let starts = (0..self.members)
            .filter(|&v| self.load[v] > self.bands[v].least)
            .map(|v| (v, u64::MAX - relief(v)));
        let paths = self.cheapest_paths(starts, false);
        (0..self.members)
            .filter(|&v| self.load[v] < self.bands[v].most)
            .filter_map(|v| {
                let (cost, rank, edges) = paths.distance[v];
                assert!(cost >= 0, "an exchange within the bands that saves a move was left");
                let gain = (u64::MAX - rank).checked_sub(self.crowding(v, self.load[v]))?;
                (cost == 0 && gain > 0).then_some((std::cmp::Reverse(gain), edges, v))
            })
            .min()
            .map(|(_, _, v)| paths.to(v))
    }

    /// The cheapest paths from any of `starts`, each given with its rank, to every vertex; without edges of the
    /// total unless `through_total`.
    fn cheapest_paths(&self, starts: impl Iterator<Item = (usize, u64)>, through_total: bool) -> Paths {
        let total = self.members;
        let mut distance = vec![UNREACHED; total + 1];
        let mut parent = vec![usize::MAX; total + 1];
        let mut changed: Vec<usize> = Vec::new();
        for (v, rank) in starts {
            distance[v] = (0, rank, 0);
            changed.push(v);
        }
        let vertices = if through_total { total + 1 } else { total };
        // Bellman and Ford, by rounds. No cycle is negative, so a shortest path has at most `total` edges.
        let mut rounds = 0;
        while !changed.is_empty() {
            rounds += 1;
            assert!(rounds <= total + 2, "the residual graph has a negative cycle");
            let mut next = Vec::new();
            let mut queued = vec![false; total + 1];
            for &u in &changed {
                let (cost, rank, edges) = distance[u];
                for v in 0..vertices {
                    let weight = if v == u {
                        None
                    } else if v == total {
                        // What is outside its band sends a full or a least flow to the total already.
                        (self.load[u].max(self.bands[u].least) < self.bands[u].most).then_some(0)
                    } else if u == total {
                        (self.load[v].min(self.bands[v].most) > self.bands[v].least).then_some(0)
                    } else {
                        self.weight(u, v)
                    };
                    let Some(weight) = weight else { continue };
                    let reached = (cost + weight, rank, edges + 1);
                    if reached < distance[v] {
                        distance[v] = reached;
                        parent[v] = u;
                        if !queued[v] {
                            queued[v] = true;
                            next.push(v);
                        }
                    }
                }
            }
            changed = next;
        }
        Paths { distance, parent }
    }

    /// Gives one replica from each vertex of a path to the next.
    fn send_along(&mut self, path: &[usize]) {
        for edge in path.windows(2) {
            self.swap(edge[0], edge[1]);
        }
    }

    /// Gives one partition's replica on `u` to `v` at the least cost. An edge to or from the total moves none.
    fn swap(&mut self, u: usize, v: usize) {
        if u == self.members || v == self.members {
            return;
        }
        let wanted = self.weight(u, v).expect("an edge of the path");
        let (from, to) = (index(u), index(v));
        let partition = self
            .scattered(u * self.members + v)
            .find(|&partition| {
                let owners = &self.owners[partition];
                if !owners.contains(&from)
                    || owners.contains(&to)
                    || self.cost(partition, v) - self.cost(partition, u) != wanted
                {
                    return false;
                }
                let (from, to) = (self.zone_of[u], self.zone_of[v]);
                let held = |zone: usize| {
                    let count = owners.iter().filter(|&&w| self.zone_of[usize::from(w)] == zone).count();
                    u32::try_from(count).expect("at most N")
                };
                from == to || (held(from) > self.rule.least && held(to) < self.rule.most)
            })
            .expect("the weight counts such a partition");
        self.count_swaps(partition, false);
        let slot = self.owners[partition].iter().position(|&w| w == from).expect("just found");
        self.owners[partition][slot] = to;
        self.count_swaps(partition, true);
        self.load[u] -= 1;
        self.load[v] += 1;
    }
}

fn index(v: usize) -> u16 {
    u16::try_from(v).expect("members are at most MEMBERS_MAX")
}

/// A fixed scatter of pairs (splitmix64's finish), to break ties without a pattern.
fn mix(a: u64, b: u64) -> u64 {
    let mut x = (a << 32 | b).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
