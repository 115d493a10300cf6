//! What is stored may be older than the definition's rules.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::operator::Operator;
use headway_operator::crd::SplitModel;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PostParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};

use crate::objects;
use crate::specs::{asleep, merged};
use crate::wait::eventually;
use crate::world::World;

const DEFINITION: &str = "splitmodels.headway.dev";
/// Long enough for a dozen retries, if there were any.
const QUIET: Duration = Duration::from_secs(5);

pub async fn against_the_rules(world: World) -> Result<()> {
    let namespace = world.namespace("stored").await?;
    let wrong = merged(asleep(), &json!({"split": {"min": 9, "max": 3}}));
    store_against_the_definition(&world, &namespace, "wrong", &wrong).await?;
    let invalid = |status: &_| objects::has_condition(status, "Degraded", "True", "InvalidSpec");
    let splitmodel = world
        .status(&namespace, "wrong", "the broken rule is told", invalid)
        .await?;
    let status = splitmodel.status.context("a status")?;
    let condition = objects::condition(&status, "Degraded").context("the condition")?;
    ensure!(
        condition
            .message
            .contains("lower split.min or raise split.max"),
        "{condition:?}"
    );
    objects::none_left(&world, &namespace, "headway.dev/splitmodel=wrong").await?;

    // Nothing but a change of the spec helps, so nothing else is tried.
    let name = "headway_operator_reconciliations_total";
    let settled = settled(&world, name).await?;
    tokio::time::sleep(QUIET).await;
    let later = world.operator().metric(name, "").await?;
    ensure!(
        later - settled < 1.5,
        "{} reconciliations in {QUIET:?}",
        later - settled
    );

    let corrected = json!({"spec": {"split": {"min": 3, "max": 9}}});
    world.change(&namespace, "wrong", &corrected).await?;
    let well = |status: &_| {
        objects::has_condition(status, "Degraded", "False", "AsExpected")
            && objects::has_condition(status, "Progressing", "False", "UpToDate")
    };
    world
        .status(&namespace, "wrong", "the corrected spec is applied", well)
        .await?;

    // One that stays wrong can be deleted.
    store_against_the_definition(&world, &namespace, "another", &wrong).await?;
    world
        .status(&namespace, "another", "the broken rule is told", invalid)
        .await?;
    world.delete(&namespace, "another").await
}

pub async fn unreadable(world: World) -> Result<()> {
    let namespace = world.namespace("unreadable").await?;
    world.delete_lease().await?;
    let operator = world.start("reader", None).await?;
    let wrong = merged(asleep(), &json!({"tail": {"dtype": "f64"}}));
    store_against_the_definition(&world, &namespace, "wrong", &wrong).await?;
    let read = read_around_it(&world, &operator, &namespace, "after").await;
    read.with_context(|| operator.log())?;
    operator.terminate().await?;

    // Its first list has the unreadable one in it.
    let operator = world.start("successor", None).await?;
    let read = read_around_it(&world, &operator, &namespace, "later").await;
    read.with_context(|| operator.log())?;
    let corrected = json!({"spec": {"tail": {"dtype": "f32"}}});
    world.change(&namespace, "wrong", &corrected).await?;
    let well = |status: &_| objects::has_condition(status, "Progressing", "False", "UpToDate");
    world
        .status(&namespace, "wrong", "the corrected spec is applied", well)
        .await?;
    world.delete_everything().await?;
    operator.terminate().await?;
    Ok(())
}

/// Others are reconciled, and the log and a metric tell of what cannot be read.
async fn read_around_it(
    world: &World,
    operator: &Operator,
    namespace: &str,
    other: &str,
) -> Result<()> {
    world.create(namespace, other, &asleep()).await?;
    let well = |status: &_| objects::has_condition(status, "Progressing", "False", "UpToDate");
    world
        .status(namespace, other, "others are reconciled", well)
        .await?;
    let counted = operator
        .metric("headway_operator_watch_errors_total", "kind=\"SplitModel\"")
        .await?;
    ensure!(counted > 0.5, "it is not counted");
    ensure!(
        operator.log().contains("nknown variant"),
        "it is not logged"
    );
    Ok(())
}

/// The value of a counter that has stopped for a moment.
async fn settled(world: &World, name: &str) -> Result<f64> {
    let mut last = -1.0;
    eventually("the counter stops", async || {
        let before = std::mem::replace(&mut last, world.operator().metric(name, "").await?);
        ensure!((last - before).abs() < 0.5, "it was {before} and is {last}");
        Ok(last)
    })
    .await
}

/// Takes every rule and enumeration out of the definition, creates the SplitModel, and puts them back.
async fn store_against_the_definition(
    world: &World,
    namespace: &str,
    name: &str,
    spec: &Value,
) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(world.client());
    let strict = definitions.get(DEFINITION).await?;
    let mut lax = json!(strict);
    drop_rules(&mut lax["spec"]);
    replace(&definitions, serde_json::from_value(lax)?).await?;
    // The definition takes effect a moment after it is stored, both times.
    let stored = eventually("the API server is lax", async || {
        world.create(namespace, name, spec).await
    });
    let stored = stored.await;
    replace(&definitions, strict).await?;
    let resource = ApiResource::erase::<SplitModel>(&());
    let probe = DynamicObject::new("probe", &resource).data(json!({"spec": spec}));
    eventually("the API server is strict again", async || {
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let created = world.raw_splitmodels(namespace).create(&dry, &probe).await;
        ensure!(created.is_err(), "an invalid spec is still accepted");
        Ok(())
    })
    .await?;
    stored.map(drop)
}

async fn replace(
    definitions: &Api<CustomResourceDefinition>,
    mut definition: CustomResourceDefinition,
) -> Result<()> {
    let live = definitions.get(DEFINITION).await?;
    definition.metadata.resource_version = live.metadata.resource_version;
    definitions
        .replace(DEFINITION, &PostParams::default(), &definition)
        .await?;
    Ok(())
}

fn drop_rules(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("x-kubernetes-validations");
            if fields.get("enum").is_some_and(Value::is_array) {
                fields.remove("enum");
            }
            fields.values_mut().for_each(drop_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_rules),
        _ => {}
    }
}
