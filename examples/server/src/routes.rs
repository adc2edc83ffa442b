//! The requests that the server knows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use crate::App;
use crate::api::{self, Parsed};
use crate::pool::Failure;

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/recommend", post(recommend))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/admin/reload", post(reload))
        .layer(DefaultBodyLimit::max(app.options.body))
        .with_state(app)
}

/// An error as `{"error": "…"}`.
fn refuse(status: StatusCode, reason: impl ToString) -> Response {
    #[derive(Serialize)]
    struct Refusal {
        error: String,
    }
    let mut response = json(&Refusal {
        error: reason.to_string(),
    });
    *response.status_mut() = status;
    response
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

async fn recommend(State(app): State<Arc<App>>, request: Request) -> Response {
    let in_flight = app.metrics.begin();
    let response = answer(&app, request)
        .await
        .unwrap_or_else(|refusal| refusal);
    in_flight.answered(response.status().as_u16());
    response
}

async fn answer(app: &App, request: Request<Body>) -> Result<Response, Response> {
    let deadline = Instant::now() + app.options.timeout;
    let body = timeout_at(deadline, Bytes::from_request(request, &()))
        .await
        .map_err(|_| refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?
        .map_err(|e| refuse(e.status(), e.body_text()))?;
    let release = app.current();
    let parsed = Parsed::new(&body, release.bundle())
        // `:#` tells the causes too.
        .map_err(|e| refuse(StatusCode::BAD_REQUEST, format!("{e:#}")))?;
    let Parsed {
        settings,
        histories,
        unknown,
    } = parsed;
    let failed = |failure| match failure {
        Failure::Full => {
            app.metrics.rejected();
            let text = "too many requests wait, try again later";
            let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, text);
            response.headers_mut().insert(RETRY_AFTER, 1.into());
            response
        }
        Failure::Refused(reason) => refuse(StatusCode::BAD_REQUEST, reason),
        Failure::Failed(reason) => refuse(StatusCode::INTERNAL_SERVER_ERROR, reason),
    };
    let reply = app.pool.submit(release.clone(), settings, histories);
    let lists = timeout_at(deadline, reply.map_err(failed)?)
        .await
        .map_err(|_| refuse(StatusCode::GATEWAY_TIMEOUT, "ranking did not end in time"))?
        .unwrap_or_else(|_| Err(Failure::Failed("the server is stopping".into())))
        .map_err(failed)?;
    Ok(json(&api::Response::new(
        release.bundle(),
        &lists,
        &unknown,
    )))
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.stopping.load(Ordering::Relaxed) {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
    }
    "ready\n".into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let release = app.current();
    let text = app.metrics.text(release.bundle(), app.pool.waiting());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn reload(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let Some(token) = &app.options.admin_token else {
        return refuse(
            StatusCode::FORBIDDEN,
            "the server was started without an admin token",
        );
    };
    let given = headers.get(AUTHORIZATION).map(|v| v.as_bytes());
    let given = given.and_then(|v| v.strip_prefix(b"Bearer "));
    if !given.is_some_and(|given| same(given, token.as_bytes())) {
        return refuse(
            StatusCode::UNAUTHORIZED,
            "the admin token is missing or wrong",
        );
    }
    let done = tokio::task::spawn_blocking(move || app.reload()).await;
    match done {
        Ok(Ok(release)) => json(&api::Version::of(release.bundle())),
        Ok(Err(e)) => refuse(StatusCode::CONFLICT, format!("the old bundle stays: {e:#}")),
        Err(e) => refuse(StatusCode::INTERNAL_SERVER_ERROR, e),
    }
}

/// Whether two secrets are equal, in a time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}
