Feature: Operators see what the engines say

  @ORCHD-LOG-1
  Scenario: The last lines of each replica, for admins only
    Given a pool "words" with 1 slot
    And it has 2 replicas
    When the operator asks for "/v1/pools/words/logs?lines=20"
    Then the answer is 200
    And the answer says:
      | pool_id          | words   |
      | replicas.0.id    | words-0 |
      | replicas.0.lines | []      |
      | replicas.1.id    | words-1 |
    When the operator asks for "/v1/pools/words/logs?replica=words-1"
    Then the answer says:
      | replicas.0.id | words-1 |
    When alice asks for "/v1/pools/words/logs"
    Then the answer is 403 FORBIDDEN
    When the operator asks for "/v1/pools/words/logs?replica=words-9"
    Then the answer is 404 NOT_FOUND
    And the message tells "words-0"
    When the operator asks for "/v1/pools/prose/logs"
    Then the answer is 404 NOT_FOUND
    When the operator asks for "/v1/pools/words/logs?lines=100000"
    Then the answer is 400 INVALID_PARAMS

  @ORCHD-LOG-2
  Scenario: A quiet log can be followed, and closes with a hint to come back
    Given a pool "words" with 1 slot
    And the setting "streaming.heartbeat_ms" is 100
    When the operator follows the log of "words" as "log"
    Then the answer is 200
    And "log" has received 3 comments
    When the daemon is told to shut down
    Then the stream "log" asked to come back after 1000 ms and told no end

  @ORCHD-LOG-2 @ORCHD-AUTH-3
  Scenario: Followers count among the streams of their key, and name one of several replicas
    Given a pool "words" with 1 slot
    And a pool "wide" with 1 slot
    And it has 2 replicas
    And the setting "limits.streams_per_key" is 1
    When the operator asks for "/v1/pools/wide/logs?follow=1"
    Then the answer is 400 INVALID_PARAMS
    When alice asks for "/v1/pools/words/logs?follow=1"
    Then the answer is 403 FORBIDDEN
    When the operator follows the log of "words" as "log"
    Then the answer is 200
    When the operator asks for "/v1/pools/words/logs?follow=1"
    Then the answer is 429 RATE_LIMITED
