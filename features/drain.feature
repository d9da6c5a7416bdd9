Feature: An operator drains a pool

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms

  @ORCHD-DRAIN-1 @ORCHD-HTTP-4
  Scenario: What runs is cut at the deadline, what waits is held, and all of it goes on after the resume
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt      | Once upon a time    |
      | max_tokens  | 250                 |
      | determinism | strict              |
    And "running" has received 2 tokens
    And alice submits "waiting"
    And the operator drains "words" within 20 ms
    Then the answer is 202
    And the answer says:
      | ready    | false |
      | draining | true  |
      | state    | ready |
    And "running" is queued
    And the pool "words" is drained
    When alice submits "held"
    Then the answer is 202
    And "waiting" waits because "is drained"
    And the metrics are:
      | pool_draining{pool_id="words"} | 1 |
      | pool_ready{pool_id="words"}    | 0 |
    When the operator sends POST "/v1/pools/words/resume"
    Then the answer is 200
    And the answer says:
      | ready    | true  |
      | draining | false |
      | drain    | null  |
    And all of them are done
    And the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 250 |
      | continuations | 1   |
      | exact         | yes |

  @ORCHD-DRAIN-1
  Scenario: What ends before the deadline is not cut
    Given the pool "words" is ready
    When alice submits and streams "short":
      | prompt     | Once upon a time |
      | max_tokens | 20               |
    And "short" has received 2 tokens
    And the operator drains "words" within 20000 ms
    Then the stream "short" ends with end
    And the end event of "short" says:
      | continuations | 0 |
    And the pool "words" is drained

  @ORCHD-DRAIN-1
  Scenario: A drain outlives the daemon
    Given the pool "words" is ready
    When the operator drains "words" within 0 ms
    And alice submits "held"
    And the daemon is stopped
    And the daemon starts again
    And the pool "words" is ready
    Then "held" waits because "is drained"
    When the operator sends POST "/v1/pools/words/resume"
    Then all of them are done

  @ORCHD-DRAIN-2 @ORCHD-OBS-3
  Scenario: Others are preferred, and with none left the daemon is not ready
    Given a pool "more" with 1 slot
    And the pool "words" is ready
    And the pool "more" is ready
    When the operator drains "more" within 0 ms
    And alice asks what would become of:
      | prompt | Once upon a time |
    Then the answer says:
      | placement.pools.0.reason | takes_tasks |
      | placement.pools.1.reason | drained     |
    When a stranger asks for "/readyz"
    Then the answer is 200
    When the operator drains "words" within 0 ms
    And a stranger asks for "/readyz"
    Then the answer is 503

  @ORCHD-DRAIN-1 @ORCHD-AUTH-2
  Scenario: Only admins drain and resume
    When alice drains "words" within 0 ms
    Then the answer is 403 FORBIDDEN
    When alice sends POST "/v1/pools/words/resume"
    Then the answer is 403 FORBIDDEN
    When the operator drains "wrods" within 0 ms
    Then the answer is 404 NOT_FOUND
