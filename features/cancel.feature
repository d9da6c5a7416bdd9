Feature: A task can be canceled at any time

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms

  @ORCHD-CANCEL-1 @ORCHD-CANCEL-2
  Scenario: A running task ends for everybody and gives its slot back
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And alice watches "story" as "second viewer"
    And "story" has received 3 tokens
    And alice cancels "story"
    Then the answer is 204
    And "story" makes no more tokens
    And the stream "story" ends with error CANCELED
    And the stream "second viewer" ends with error CANCELED
    And no slot of "words" is busy
    And "story" is canceled
    And "story" has the record:
      | finish_reason | null |

  @ORCHD-CANCEL-1
  Scenario: A queued task leaves the queue and nobody else does
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits and streams "waiting":
      | prompt     | Once upon a time |
      | max_tokens | 20               |
    And alice submits "behind":
      | prompt     | Once upon a time |
      | max_tokens | 2                |
    And alice cancels "waiting"
    Then the answer is 204
    And the stream "waiting" ends with error CANCELED
    And the stream "waiting" has 0 tokens
    And "waiting" has the record:
      | state    | "canceled" |
      | attempts | 0          |
    And "running" is running
    When alice cancels "running"
    Then "behind" is done

  @ORCHD-CANCEL-1 @ORCHD-CANCEL-2
  Scenario: A task whose prompt is still being read
    Given a pool "reader" with 1 slot
    And its prompt takes 200 ms per token
    When alice submits and streams "story" to pool "reader":
      | prompt | one two three four five six seven eight nine ten |
    And "story" is running
    And alice cancels "story"
    Then the answer is 204
    And the stream "story" ends with error CANCELED
    And the stream "story" has 0 tokens
    And no slot of "reader" is busy

  @ORCHD-CANCEL-1
  Scenario: A task whose model is not loaded yet
    Given a pool "heavy" with 1 slot
    And its model takes 60000 ms to load
    When alice submits and streams "story" to pool "heavy":
      | prompt | Once upon a time |
    And alice cancels "story"
    Then the answer is 204
    And the stream "story" ends with error CANCELED

  @ORCHD-CANCEL-1
  Scenario: Canceling again changes nothing
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And alice cancels "story"
    And the answer is 204
    And alice cancels "story"
    Then the answer is 204
    And "story" is canceled

  @ORCHD-CANCEL-1
  Scenario: Canceling what has ended changes nothing
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    And "story" is done
    And alice cancels "story"
    Then the answer is 204
    And "story" is done
    When alice watches "story"
    Then the stream "story" ends with end

  @ORCHD-CANCEL-1 @ORCHD-HTTP-2
  Scenario: An unknown task cannot be canceled
    When alice sends POST "/v1/tasks/00000000-0000-4000-8000-000000000000/cancel"
    Then the answer is 404 NOT_FOUND
    When alice sends POST "/v1/tasks/story/cancel"
    Then the answer is 400 INVALID_PARAMS

  @ORCHD-CANCEL-2 @ORCHD-STREAM-2
  Scenario: A replay shows what was made before the cancel, then the cancel
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "story" has received 5 tokens
    And alice cancels "story"
    And alice watches "story" as "replay"
    Then the stream "replay" ends with error CANCELED
    And the stream "replay" has all tokens that "story" made
    And the error event of "replay" says:
      | retriable      | false |
      | retry_after_ms | null  |
