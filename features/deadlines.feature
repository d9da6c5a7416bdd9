Feature: A deadline is a promise or a refusal

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms

  @ORCHD-TASK-5
  Scenario: What cannot be done in time is refused at once, with the time that would do
    Given the pool "words" is ready
    When alice submits "hopeless":
      | prompt      | Once upon a time |
      | max_tokens  | 300              |
      | deadline_ms | 50               |
    Then the answer is 400 DEADLINE_UNMET
    And the answer says:
      | retriable | false |
      | pool_id   | words |
    When alice submits "in time" with the deadline that was told to be feasible:
      | prompt     | Once upon a time |
      | max_tokens | 300              |
    Then the answer is 202
    When alice asks for "/v1/tasks"
    Then the answer lists "in time"

  @ORCHD-TASK-5
  Scenario Outline: A deadline of <deadline> ms is none
    When alice submits "story":
      | prompt      | Once upon a time |
      | deadline_ms | <deadline>       |
    Then the answer is 400 DEADLINE_UNMET

    Examples:
      | deadline |
      | 0        |
      | -5       |

  @ORCHD-TASK-5
  Scenario: A task that waits ends as soon as it can no longer make it
    Given the pool "words" is ready
    When alice submits "lesson":
      | prompt     | Once upon a time |
      | max_tokens | 100              |
    And "lesson" is done
    And alice submits "running":
      | prompt          | Once upon a time |
      | max_tokens      | 3000             |
      | expected_tokens | 5                |
    And "running" is running
    And alice submits and streams "waiting":
      | prompt          | Once upon a time |
      | max_tokens      | 100              |
      | deadline_ms     | 2500             |
    Then the answer is 200
    And the stream "waiting" ends with error DEADLINE_UNMET
    And "waiting" ended before its deadline
    And "running" is running

  @ORCHD-TASK-5
  Scenario: A running task goes on past its deadline
    Given the pool "words" is ready
    When alice submits and streams "late":
      | prompt          | Once upon a time |
      | max_tokens      | 60               |
      | expected_tokens | 5                |
      | deadline_ms     | 200              |
    Then the answer is 200
    And the stream "late" ends with end
    And the stream "late" has 60 tokens
    And "late" ended after its deadline

  @ORCHD-TASK-5
  Scenario: A running task is cut at its deadline where the operator wants that
    Given the setting "tasks.cut_at_deadline" is true
    And the pool "words" is ready
    When alice submits and streams "late":
      | prompt          | Once upon a time |
      | max_tokens      | 3000             |
      | expected_tokens | 5                |
      | deadline_ms     | 300              |
    And "late" has received 2 tokens
    Then the stream "late" ends with error DEADLINE_UNMET
    And no slot of "words" is busy
