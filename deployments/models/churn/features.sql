-- Churn features: one row a customer, as known at $as_of (TIMESTAMPTZ).
--
-- Reads `events`, and of those only the ones that had happened by $as_of. Days are elapsed spans of 24 hours,
-- counted from epoch seconds and from intervals in hours, never from calendar dates: those, and intervals in
-- days, follow the session's time zone and its clock changes.
--
-- avg_events_per_day = total_events / (customer_tenure_days + 1): the day of the first event counts.
--
-- engagement_score = 100 * (0.5 * 30 / (30 + days_since_last_event)
--                         + 0.3 * events_last_30d / (events_last_30d + 10)
--                         + 0.2 * distinct_products / (distinct_products + 10))
-- Recency halves at 30 days, frequency and breadth are half full at 10; each part lies in 0..1, so the score
-- lies in 0..100.
WITH history AS (
  SELECT
    customer_id,
    COUNT(*) AS total_events,
    COUNT(DISTINCT session_id) AS total_sessions,
    COUNT(DISTINCT product_id) AS distinct_products,
    COUNT(*) FILTER (WHERE event_time > $as_of - INTERVAL '720' HOUR) AS events_last_30d,
    COUNT(*) FILTER (WHERE event_time > $as_of - INTERVAL '2160' HOUR) AS events_last_90d,
    FLOOR(EPOCH($as_of)) - FLOOR(EPOCH(MAX(event_time))) AS seconds_since_last_event,
    FLOOR(EPOCH($as_of)) - FLOOR(EPOCH(MIN(event_time))) AS seconds_since_first_event
  FROM events
  WHERE event_time <= $as_of
  GROUP BY customer_id
),

aged AS (
  SELECT
    *,
    CAST(FLOOR(seconds_since_last_event / 86400) AS BIGINT) AS days_since_last_event,
    CAST(FLOOR(seconds_since_first_event / 86400) AS BIGINT) AS customer_tenure_days
  FROM history
)

SELECT
  customer_id,
  total_events,
  total_sessions,
  distinct_products,
  events_last_30d,
  events_last_90d,
  days_since_last_event,
  customer_tenure_days,
  CAST(total_events AS DOUBLE) / CAST(customer_tenure_days + 1 AS DOUBLE) AS avg_events_per_day,
  CASE
    WHEN days_since_last_event <= 7 THEN 'active'
    WHEN days_since_last_event <= 30 THEN 'recent'
    WHEN days_since_last_event <= 90 THEN 'lapsing'
    ELSE 'dormant'
  END AS recency_tier,
  CAST(50 AS DOUBLE) * 30 / (30 + days_since_last_event)
  + CAST(30 AS DOUBLE) * events_last_30d / (events_last_30d + 10)
  + CAST(20 AS DOUBLE) * distinct_products / (distinct_products + 10) AS engagement_score
FROM aged
ORDER BY customer_id
